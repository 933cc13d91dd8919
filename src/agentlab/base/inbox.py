"""A Unix socket at which another program hands over one open descriptor."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path


class DescriptorInbox:
    """Listens in a folder.  `name` is how this process and children that inherit `folder` reach it.

    The folder goes by its descriptor because the path of a socket has at most 107 characters.
    """

    def __init__(self, folder: Path, file: str) -> None:
        self.folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.name = f"/proc/self/fd/{self.folder}/{file}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(self.name)
            self._listener.listen(1)
        except OSError:
            self._listener.close()
            os.close(self.folder)
            raise

    async def receive(self) -> int:
        """The descriptor that is handed over; the caller closes it.  OSError if something else comes."""
        connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        with connection:
            await _readable(connection)
            _, descriptors, _, _ = socket.recv_fds(connection, 256, 1)
        if not descriptors:
            raise OSError(71, "no descriptor was handed over")
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]

    def close(self) -> None:
        """Stop listening and remove the socket's file."""
        self._listener.close()
        Path(self.name).unlink(missing_ok=True)
        os.close(self.folder)


async def _readable(connection: socket.socket) -> None:
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection.fileno(), event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(connection.fileno())
