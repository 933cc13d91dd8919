"""The door to sockets for VMs: those of their processes, and the names of interfaces."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def listening(folder: Path, name: str) -> int:
    """A descriptor that listens at `folder`/`name`, for a VM's process to inherit.  The caller closes it."""
    with _directory(folder) as directory, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        (folder / name).unlink(missing_ok=True)
        made.bind(f"{directory}/{name}")
        (folder / name).chmod(0o600)
        made.listen(1)
        return made.detach()


@contextmanager
def reachable(folder: Path, name: str) -> Iterator[Path]:
    """A path to the socket `folder`/`name` that is short enough to connect to, while inside."""
    with _directory(folder) as directory:
        yield Path(f"{directory}/{name}")


def connected(folder: Path, name: str) -> socket.socket:
    """A connection to the socket `folder`/`name`, for asyncio.  Raises OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with reachable(folder, name) as path:
            made.connect(str(path))  # queued by the kernel at once, whether or not the other end has begun
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def hand_over(connection: socket.socket, descriptor: int) -> None:
    """Pass an open file to the process at the other end, before what is sent next."""
    socket.send_fds(connection, [b" "], [descriptor])


def interface_index(name: str) -> int:
    """The index of a network interface.  OSError if there is none."""
    return socket.if_nametoindex(name)


@contextmanager
def control_of_interfaces() -> Iterator[int]:
    """A descriptor that takes interface ioctls."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as made:
        yield made.fileno()


@contextmanager
def _directory(folder: Path) -> Iterator[str]:
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
