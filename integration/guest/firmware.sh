# A guest that its BIOS has booted from the disk itself.

result kernel ok "$(cat /proc/cmdline)"
# The direct flag: what the disk gives, not what the kernel may remember.
result digest ok "$(dd if=/dev/vda bs=1M count="$(ask megabytes)" iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1)"
case $(ask then) in
reboot)
    reboot -f
    sleep 60
    ;;
esac
