"""User namespaces for shifting owners: one per uid range, kept open because making one costs a process."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from agentlab.base.clock import sleep
from agentlab.base.process import ended, start, which
from agentlab.base.tasks import TaskScope

CACHED_MAX = 256
RANGE_LENGTH = 65536
READY_S_MAX = 10.0
AHEAD_AFTER_S = 0.05  # until the sandbox that is being made has begun


@dataclass(frozen=True, slots=True, kw_only=True)
class UidRange:
    """The host's ids that a sandbox's ids 0 … 65535 stand for."""

    first: int
    length: int = RANGE_LENGTH


class UserNamespaces:
    """Open user namespaces by their first id, the least recently used closed beyond CACHED_MAX."""

    def __init__(self) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()
        self._making = asyncio.Lock()
        self._ahead = TaskScope("user namespaces")

    def expect(self, uids: UidRange) -> None:
        """A hint that `uids` will be borrowed next: their namespace is made in a moment, out of the caller's way."""
        if uids.first not in self._open:
            self._ahead.start(self._make(uids), f"from {uids.first}")

    async def _make(self, uids: UidRange) -> None:
        await sleep(AHEAD_AFTER_S)
        try:
            os.close(await self.borrow(uids))
        except OSError:
            return  # whoever needs it will hear of it

    async def borrow(self, uids: UidRange) -> int:
        """A duplicate of the descriptor of a namespace that maps `uids`; the caller closes it.  Raises OSError."""
        async with self._making:
            if uids.first not in self._open:
                self._open[uids.first] = await _made(uids)
                while len(self._open) > CACHED_MAX:
                    os.close(self._open.popitem(last=False)[1])
            self._open.move_to_end(uids.first)
            return os.dup(self._open[uids.first])

    async def close(self) -> None:
        """Close all of them."""
        await self._ahead.close()
        while self._open:
            os.close(self._open.popitem()[1])


def mapped_ids() -> tuple[tuple[int, int], ...]:
    """First id and length of each range of ids that exist in the user namespace of this process, for users and groups.

    Ranges that follow each other stay apart: the kernel lets no range of a nested namespace span two of them.
    """
    users, groups = (_ranges(Path(f"/proc/self/{name}").read_text()) for name in ("uid_map", "gid_map"))
    both = (
        (max(first, other), min(first + length, other + other_length))
        for first, length in users
        for other, other_length in groups
    )
    return tuple((first, end - first) for first, end in both if first < end)


def pieces(ranges: tuple[tuple[int, int], ...], uids: UidRange) -> tuple[UidRange, ...]:
    """`uids` cut where one of `ranges` ends, less what exists in none."""
    cut = ((max(first, uids.first), min(first + length, uids.first + uids.length)) for first, length in ranges)
    return tuple(UidRange(first=first, length=end - first) for first, end in sorted(cut) if first < end)


def covers(ranges: tuple[tuple[int, int], ...], uids: UidRange) -> bool:
    """Whether every id of `uids` exists."""
    return any(first <= uids.first and uids.first + uids.length <= first + length for first, length in ranges)


def in_user_namespace() -> bool:
    """Whether this process is root, if at all, only inside a user namespace."""
    return mapped_ids() != ((0, 4294967295),)


def _ranges(text: str) -> list[tuple[int, int]]:
    lines = ([int(field) for field in line.split()] for line in text.splitlines())
    return [(inside, length) for inside, _, length in lines]


async def _made(uids: UidRange) -> int:
    # The program echoes a byte once it stands in its namespace; then the map can be written from outside.
    input_end, give = os.pipe2(os.O_CLOEXEC)
    take, output_end = os.pipe2(os.O_CLOEXEC)
    try:
        child = start([which("unshare") or "unshare", "--user", "cat"], stdin=input_end, stdout=output_end)
    except OSError:
        os.close(give)
        os.close(take)
        raise
    finally:
        os.close(input_end)
        os.close(output_end)
    try:
        os.write(give, b".")
        await _readable(take)
        if not os.read(take, 1):
            raise OSError(1, "the kernel refused a user namespace")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child.pid}/{name}").write_text(f"0 {uids.first} {uids.length}")
        return os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(give)
        os.close(take)
        child.kill()
        await asyncio.shield(ended(child))


async def _readable(descriptor: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        async with asyncio.timeout(READY_S_MAX):
            await ready.wait()
    finally:
        loop.remove_reader(descriptor)
