# What the demo's guest does. The host has put `marker=...` before these lines.

printf 'label: gpt\nsize=640M\n,\n' >/tmp/partitions
check partitions sfdisk --quiet /dev/vda </tmp/partitions
verified_writes verify --filename=/dev/vda1 --size=64M --bs=4k --iodepth=32

# measured NAME FIO_OPTION...: the detail is "IOPS KIB_PER_S".
measured() {
    name=$1
    shift
    fio --name="$name" --filename=/dev/vda1 --direct=1 --ioengine=libaio --size=512M \
        --output-format=terse --terse-version=3 "$@" >/tmp/fio.log 2>&1
    verdict=$?
    # Reads and writes have fields of their own; the other half is zero.
    numbers=$(awk -F ';' '$1 == 3 { print $8 + $49, $7 + $48 }' /tmp/fio.log)
    [ "$verdict" -eq 0 ] && result "$name" ok "$numbers" || result "$name" fail "$(head -n 1 /tmp/fio.log)"
}

measured sequential-write --rw=write --bs=256k --iodepth=8
measured sequential-read --rw=read --bs=256k --iodepth=8
measured random-write --rw=randwrite --bs=4k --iodepth=32 --time_based --runtime=6
measured random-read --rw=randread --bs=4k --iodepth=32 --time_based --runtime=6

check make mkfs.ext4 -q /dev/vda2
check mount mount -t ext4 /dev/vda2 /mnt
echo "$marker" >/mnt/secret
check unmount umount /mnt
check file-system fsck.ext4 -f -n /dev/vda2
