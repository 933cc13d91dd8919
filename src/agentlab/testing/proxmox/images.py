"""What a disk image says of itself."""

from __future__ import annotations

QCOW2 = b"QFI\xfb"


def virtual_size(head: bytes, kind: str, file_bytes: int) -> int:
    """The size of the disk within an image: the head of a qcow2 file states it, any other is as large as its file."""
    if kind == "qcow2" and head.startswith(QCOW2) and len(head) >= 32:
        return int.from_bytes(head[24:32], "big")
    return file_bytes


def small_qcow2(size: int) -> bytes:
    """The head of a qcow2 image of this virtual size: enough for whoever only looks at the head."""
    head = QCOW2 + (3).to_bytes(4, "big") + bytes(12) + (16).to_bytes(4, "big") + size.to_bytes(8, "big")
    return head + bytes(512 - len(head))
