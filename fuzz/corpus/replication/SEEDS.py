#!/usr/bin/env python3
"""Writes the seeds: one frame of each kind, as docs/protocol.md lays them out."""
import pathlib
import struct

VOLUME, ATTACHMENT, INCARNATION = (bytes([byte]) * 16 for byte in (0x11, 0x22, 0x33))
PROOF = bytes([0x44]) * 64
VIEW = (
    '{"volume":"11111111-1111-1111-1111-111111111111","number":5,'
    '"writer":{"node":"node-a","attachment":"22222222-2222-2222-2222-222222222222"},'
    '"members":[{"node":"node-a","address":"10.0.0.1:7420",'
    '"state":{"in-sync":"33333333-3333-3333-3333-333333333333"}},'
    '{"node":"node-b","address":"10.0.0.2:7420","state":"behind"}],'
    '"failure_mode":"soft","lease_ms":2000}'
).encode()
DURABLE, SPARSE = 1, 2
OPENING = b"sealblk\0" + struct.pack("<HH", 1, 1)


def frame(kind, body=b"", view=0, id=0, offset=0, flags=0, payload=0):
    """A header and the body, or the header of a payload of so many bytes."""
    return struct.pack("<BBHIQQQ", kind, flags, 0, payload or len(body), view, id, offset) + body


request = {"view": 5, "id": 0x0102030405060708}
reply = {"id": 0x0102030405060708}
hello = struct.pack("<Q", 9) + VOLUME + ATTACHMENT
seeds = {
    "hello": frame(0x01, OPENING + struct.pack("<HBB", 3, 1, 0) + hello + PROOF + b"node-a", view=5),
    "hello-without-proof": frame(0x01, OPENING + struct.pack("<HBB", 0, 0, 0) + hello + b"node-a", view=5),
    "create": frame(0x02, OPENING + struct.pack("<B3xI", 1, 3) + PROOF + b"{}\n" + VIEW, view=5),
    "accept": frame(0x03, VIEW, **request),
    "write": frame(0x04, offset=1 << 20, payload=4096, flags=DURABLE | SPARSE, **request),
    "zero": frame(0x05, struct.pack("<Q", 1 << 32), offset=512, **request),
    "flush": frame(0x06, **request),
    "read": frame(0x07, struct.pack("<I", 8192), offset=1 << 40, **request),
    "rows": frame(0x08, struct.pack("<I", 65536), offset=7, **request),
    "settle": frame(0x09, struct.pack("<IQIQ", 2, 4, 1048575, 0), **request),
    "ping": frame(0x0A, **request),
    "describe": frame(0x0B, OPENING + VOLUME),
    "digest": frame(0x0C, struct.pack("<I", 262144), offset=1 << 40, **request),
    "welcome": frame(0x81, struct.pack("<H", 1) + INCARNATION, view=4),
    "refused": frame(0x82, struct.pack("<H", 4) + "view 6 is accepted…".encode(), view=6),
    "done": frame(0x83, **reply),
    "data": frame(0x84, payload=8192, **reply),
    "row-list": frame(0x85, struct.pack("<QQ", 5 << 1 | 1, 3 << 1), **reply),
    "failed": frame(0x86, struct.pack("<i", 5), **reply),
    "superseded": frame(0x87, view=6, **reply),
    "zeros": frame(0x88, **reply),
    "description": frame(0x89, struct.pack("<H", 1) + b"{}\n"),
    "digest-of": frame(0x8A, bytes([0x55]) * 32, **reply),
}
for name, content in seeds.items():
    pathlib.Path(__file__).with_name(f"{name}.bin").write_bytes(content)
