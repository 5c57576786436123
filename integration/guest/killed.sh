# The host kills the disk's back end again and again, and starts it again.

# Writes all over the disk, and compares what is there then.
written_and_read() {
    fio --name=killed --filename=/dev/vda --rw=randwrite --direct=1 --ioengine=libaio --iodepth=32 --numjobs=2 \
        --bsrange=512-64k --size=24M --offset_increment=64M --group_reporting \
        --verify=crc32c --do_verify=1 --verify_fatal=1 --randrepeat=0
}

for_seconds() {
    local end=$(($(date +%s) + $1))
    while [ "$(date +%s)" -lt "$end" ]; do
        written_and_read || return
    done
}

# Requests that end while the writes before them do not.
fio --name=reads --filename=/dev/vda --rw=randread --direct=1 --ioengine=libaio --iodepth=8 --bs=4k \
    --time_based --runtime=600 >/dev/null 2>&1 &
ask begun >/dev/null
check fio for_seconds 20
check fio-again written_and_read
kill $!
