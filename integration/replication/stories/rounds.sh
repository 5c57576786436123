# Rounds of verified writes all over the disk, as many as the host asks for.

while [ "$(ask more)" = yes ]; do
    verified_writes round --filename=/dev/vda --bsrange=4k-64k --iodepth=16 --fsync=64 --size=48M || exit 1
done
