"""A VM's memory, copied out of its process while that is held.

A VM that began from saved memory has of its own only the pages that it has written.  Only those are copied while it is
held; what it began from cannot change, and is copied before.  The result begins others, which share it.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from agentlab.backends.interface import Unavailable
from agentlab.backends.qemu import memory_file
from agentlab.backends.qemu.memory_file import FILE_NAME

_PAGE = mmap.PAGESIZE
_ENTRY_BYTES = 8
# The highest byte of a page's entry tells: present or swapped out, and neither of a file nor shared.
# Source: the kernel's Documentation/admin-guide/mm/pagemap.rst, bits 63, 62 and 61.
_OWN = bytes(int(bool(byte & 0xC0) and not byte & 0x20) for byte in range(256))
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ...([sp]) [0-9a-f]+ \S+ (\d+)\s+(.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ram:
    """Where the memory of one process lies."""

    pid: int
    start: int
    end: int
    private: bool  # it has pages of its own above those of the file
    inode: int


def find(pid: int, bytes_count: int) -> Ram:
    """The guest's memory in a process.  Unavailable if there is none of this size."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        found = _LINE.match(line)
        if found is None or FILE_NAME not in found[5]:
            continue
        start, end = int(found[1], 16), int(found[2], 16)
        if end - start == bytes_count:
            return Ram(pid=pid, start=start, end=end, private=found[3] == "p", inode=int(found[4]))
    raise Unavailable("the VM's memory was not found in its process", "Stop the sandbox and start it again.")


def copy_file(ram: Ram, target: int) -> None:
    """Copy the file that lies below the memory, the whole memory if it is not private.  Raises OSError, Unavailable."""
    folder = Path(f"/proc/{ram.pid}/fd")
    for each in folder.iterdir():
        if each.stat().st_ino == ram.inode and stat.S_ISREG(each.stat().st_mode):
            descriptor = os.open(each, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                if os.fstat(descriptor).st_size == ram.end - ram.start:
                    memory_file.copy(descriptor, target)
                    return
            finally:
                os.close(descriptor)
    raise Unavailable("the file below the VM's memory is not open in its process", "Stop and start the sandbox.")


def copy_own(ram: Ram, target: int) -> int:
    """Copy the pages that are the process's own; it must be held.  How many bytes that were.  Raises OSError."""
    with Path(f"/proc/{ram.pid}/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(ram.start // _PAGE * _ENTRY_BYTES)
        entries = _read(pagemap.fileno(), (ram.end - ram.start) // _PAGE * _ENTRY_BYTES)
    own = entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES].translate(_OWN)
    with ExitStack() as ours:
        memory = os.open(f"/proc/{ram.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        ours.callback(os.close, memory)
        mapped = ours.enter_context(mmap.mmap(target, ram.end - ram.start))
        view = ours.enter_context(memoryview(mapped))
        for run in re.finditer(rb"\x01+", own):
            at, end = run.start() * _PAGE, run.end() * _PAGE
            while at < end:
                with view[at:end] as piece:
                    if (count := os.preadv(memory, [piece], ram.start + at)) == 0:
                        raise OSError(5, "a VM's memory ends before its end")
                at += count
    return own.count(1) * _PAGE


def _read(descriptor: int, bytes_count: int) -> bytes:
    pieces: list[bytes] = []
    while bytes_count > 0:
        if not (piece := os.read(descriptor, bytes_count)):
            raise OSError(5, "the kernel tells of fewer pages than there are")
        pieces.append(piece)
        bytes_count -= len(piece)
    return b"".join(pieces)
