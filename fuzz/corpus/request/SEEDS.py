#!/usr/bin/env python3
"""Writes the seeds: rings of one or more chains, laid out as the fuzz target reads them."""
import pathlib
import struct

NEXT, WRITE, INDIRECT = 1, 2, 4


def memory(chains, kind, sector, data=b""):
    """Guest memory with these descriptors (address, length, flags, next) and heads."""
    descriptors, heads = chains
    table = b"".join(struct.pack("<QIHH", *descriptor) for descriptor in descriptors)
    available = struct.pack("<HH", 0, len(heads)) + b"".join(struct.pack("<H", head) for head in heads)
    content = table.ljust(256, b"\0") + available.ljust(40, b"\0")
    content = content.ljust(1024, b"\0") + struct.pack("<IIQ", kind, 0, sector) + data
    return content


HEADER, DATA, STATUS = (1024, 16), (4096, 512), (2048, 1)
read = ([(*HEADER, NEXT, 1), (*DATA, NEXT | WRITE, 2), (*STATUS, WRITE, 0)], [0])
write = ([(*HEADER, NEXT, 1), (*DATA, NEXT, 2), (*STATUS, WRITE, 0)], [0])
ranges = ([(*HEADER, NEXT, 1), (1040, 16, NEXT, 2), (*STATUS, WRITE, 0)], [0])
loop = ([(*HEADER, NEXT, 1), (*DATA, NEXT, 0)], [0])
indirect = ([(1040, 48, INDIRECT, 0)], [0, 9, 40000])
table = b"".join(struct.pack("<QIHH", *descriptor) for descriptor in read[0])
seeds = {
    "read": memory(read, 0, 8),
    "write": memory(write, 1, 2047),
    "flush": memory(read, 4, 0),
    "get-id": memory(read, 8, 0),
    "discard": memory(ranges, 11, 0, struct.pack("<QII", 8, 16, 0)),
    "write-zeroes": memory(ranges, 13, 0, struct.pack("<QII", 0, 2048, 1)),
    "loop": memory(loop, 0, 0),
    "indirect": memory(indirect, 0, 1, table),
}
for name, content in seeds.items():
    pathlib.Path(__file__).with_name(f"{name}.bin").write_bytes(content)
