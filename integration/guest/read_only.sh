# A disk that must not be written.

result read-only ok "$(attribute ro)"
result digest ok "$(dd if=/dev/vda bs=1M count=64 iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1)"
if dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null; then
    result write-refused fail "a write went through"
else
    result write-refused ok
fi
