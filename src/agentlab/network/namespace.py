"""The door into other network namespaces: work that enters one runs in a thread of its own, which then ends."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_NS_GET_USERNS = 0xB701
_CAP_NET_ADMIN = 12
_OWN = Path("/proc/thread-self/ns/net")


async def in_own_thread(work: Callable[[], T]) -> T:
    """Run blocking work in a thread made for it.  Cancelling waits for the work's end before it passes on: a kernel
    call cannot be taken back, and whoever undoes must not race with who does.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # carried over to the waiting task, whatever it is
            loop.call_soon_threadsafe(settle, None, error)
        else:
            loop.call_soon_threadsafe(settle, result, None)

    threading.Thread(target=run, name="network", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait((done,))
        if not done.cancelled():
            done.exception()
        raise


@contextmanager
def opened(pid: int) -> Iterator[int]:
    """A descriptor of the network namespace of process `pid`.

    FileNotFoundError if there is no such process; ValueError if the namespace is our own: that would be the host.
    """
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs, ours = os.fstat(descriptor), _OWN.stat()
        if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
            raise ValueError(f"process {pid} is in the daemon's own network namespace")
        yield descriptor
    finally:
        os.close(descriptor)


def enter(descriptor: int) -> None:
    """Move the calling thread into a network namespace, for good.  Only for threads made for it."""
    assert threading.current_thread() is not threading.main_thread(), "the main thread stays where it is"
    move_thread(descriptor)


def move_thread(descriptor: int) -> None:
    """Move the calling thread.  Whoever calls this rather than `enter` moves it back."""
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot enter a network namespace: {os.strerror(number)}")


_libc = ctypes.CDLL(None, use_errno=True)


def may_configure() -> bool:
    """Whether we hold CAP_NET_ADMIN over our own network namespace, rather than over some other only."""
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    if not effective >> _CAP_NET_ADMIN & 1:
        return False
    descriptor = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(descriptor, _NS_GET_USERNS)
    except OSError:  # EPERM: the namespace belongs to a user namespace outside ours
        return False
    finally:
        os.close(descriptor)
    try:
        theirs, ours = os.fstat(owner), Path("/proc/self/ns/user").stat()
        return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
    finally:
        os.close(owner)
