# The words of a job. Lines to the host, on file descriptor 3:
#
#   BOOTED                      init runs; a guest that reboots says it again
#   RESULT NAME ok|fail DETAIL  the outcome of one step
#   ASK QUESTION                the guest waits for one line from the host
#   DONE STATUS                 the job has ended; the machine powers off

# result NAME ok|fail [DETAIL...]
result() {
    echo "RESULT $*" >&3
    echo "RESULT $*"
}

# check NAME COMMAND...: runs the command; its status is the result, its last line the detail.
check() {
    local name=$1 verdict=fail
    shift
    "$@" >/tmp/check.log 2>&1 && verdict=ok
    cat /tmp/check.log
    result "$name" "$verdict" "$(grep . /tmp/check.log | tail -n 1)"
    [ "$verdict" = ok ]
}

# ask QUESTION: prints the host's answer.
ask() {
    local answer
    echo "ASK $*" >&3
    read -r answer <&3
    echo "$answer"
}

# attribute NAME: a value of the disk in sysfs.
attribute() {
    cat "/sys/block/vda/$1"
}

# verified_writes NAME FIO_OPTION...: random writes, then everything read back and compared with
# its checksums. The detail is "WRITE_IOPS WRITE_KIB_PER_S READ_IOPS READ_KIB_PER_S".
verified_writes() {
    local name=$1
    shift
    if fio --name="$name" --rw=randwrite --direct=1 --ioengine=libaio --group_reporting \
        --verify=crc32c --do_verify=1 --verify_fatal=1 --randrepeat=0 \
        --output-format=terse --terse-version=3 "$@" >/tmp/fio.log 2>/tmp/fio.err; then
        result "$name" ok "$(awk -F ';' '$1 == 3 { print $49, $48, $8, $7 }' /tmp/fio.log)"
    else
        cat /tmp/fio.log /tmp/fio.err
        result "$name" fail "$(cat /tmp/fio.err /tmp/fio.log | grep . | head -n 1)"
        false
    fi
}

# Busybox's shell prefers its own small versions of these to the programs of the same name.
blkdiscard() {
    /usr/sbin/blkdiscard "$@"
}

fstrim() {
    /usr/sbin/fstrim "$@"
}
