# One disk over several boots. The host says which stage a boot is.

files=/usr/lib/x86_64-linux-gnu
sector=$(attribute queue/logical_block_size)
queues=$(ls /sys/block/vda/mq | wc -l)

# One checksum over the names and contents of all files of a mounted file system.
tree_digest() {
    (cd /mnt && find . -type f | sort | xargs sha256sum | sha256sum | cut -d ' ' -f 1)
}

# mounted KIND DEVICE
mounted() {
    check "$1-mount" mount -t "$1" "$2" /mnt
}

# unmounted KIND DEVICE: leaves nothing for the checker to repair.
unmounted() {
    check "$1-unmount" umount /mnt
    case $1 in
    ext4) check ext4-fsck fsck.ext4 -f -n "$2" ;;
    xfs) check xfs-fsck xfs_repair -n "$2" ;;
    esac
}

fill() {
    result serial ok "$(attribute serial)"
    result sector ok "$sector"
    result queues ok "$queues"
    result read-only ok "$(attribute ro)"

    result cache ok "$(attribute cache_type)"
    echo "write through" >/sys/block/vda/cache_type
    result cache-through ok "$(attribute cache_type), $(attribute queue/write_cache)"
    verified_writes fio-through --filename=/dev/vda --size=1M --bs=4k
    echo "write back" >/sys/block/vda/cache_type
    result cache-back ok "$(attribute cache_type), $(attribute queue/write_cache)"

    printf 'label: gpt\nsize=96M\nsize=256M\n,\n' >/tmp/partitions
    check partitions sfdisk --quiet /dev/vda </tmp/partitions
    share=$((24 / queues))
    verified_writes fio-4k --filename=/dev/vda1 --bs=4k --iodepth=32 \
        --numjobs="$queues" --size="${share}M" --offset_increment="${share}M"
    share=$((64 / queues))
    verified_writes fio-mixed --filename=/dev/vda1 --bsrange="$sector-256k" --iodepth=16 \
        --numjobs="$queues" --size="${share}M" --offset_increment="${share}M"

    file_system ext4 /dev/vda2
    file_system xfs /dev/vda3
}

# file_system KIND DEVICE: made, filled, unmounted and checked.
file_system() {
    check "$1-make" "mkfs.$1" -q "$2"
    mounted "$1" "$2"
    check "$1-copy" cp -r "$files" /mnt/
    check "$1-compare" diff -r "$files" "/mnt/${files##*/}"
    check "$1-random" dd if=/dev/urandom of=/mnt/random bs=64k count=128
    result "$1-digest" ok "$(tree_digest)"
    unmounted "$1" "$2"
}

verify() {
    mounted ext4 /dev/vda2
    result ext4-digest ok "$(tree_digest)"
    unmounted ext4 /dev/vda2
    mounted xfs /dev/vda3
    result xfs-digest ok "$(tree_digest)"
    unmounted xfs /dev/vda3
}

# The host cuts the power while both file systems are mounted and requests are in flight.
fall() {
    mkdir -p /mnt2
    check ext4-mount mount -t ext4 /dev/vda2 /mnt
    check xfs-mount mount -t xfs /dev/vda3 /mnt2
    fio --name=load --filename=/dev/vda1 --rw=randrw --direct=1 --ioengine=libaio --iodepth=32 \
        --bs=4k --numjobs="$queues" --time_based --runtime=600 >/dev/null 2>&1 &
    while [ "$(awk '{ print $5 }' /sys/block/vda/stat)" -lt 2000 ]; do
        sleep 0.1
    done
    ask fall
}

# Every question lets the host look at what the disk takes.
give_back() {
    for pair in ext4:/dev/vda2 xfs:/dev/vda3; do
        kind=${pair%:*}
        device=${pair#*:}
        mounted "$kind" "$device"
        ask "$kind-full" >/dev/null
        rm -rf /mnt/random "/mnt/${files##*/}"
        sync
        check "$kind-trim" fstrim /mnt
        ask "$kind-trimmed" >/dev/null
        unmounted "$kind" "$device"
    done

    check random dd if=/dev/urandom of=/dev/vda1 bs=64k count=512 oflag=direct
    ask random-full >/dev/null
    check zero blkdiscard --force --zeroout --length 16M /dev/vda1
    ask random-zeroed >/dev/null
    check zero-reads cmp -n $((16 << 20)) /dev/vda1 /dev/zero
    check discard blkdiscard --force --offset 16M --length 16M /dev/vda1
    ask random-discarded >/dev/null
    check discard-reads cmp -n $((32 << 20)) /dev/vda1 /dev/zero

    check all blkdiscard --force /dev/vda
    ask all-discarded >/dev/null
}

stage=$(ask stage)
"$stage"
case $(ask then) in
reboot)
    sync
    reboot -f
    sleep 60
    ;;
esac
