"""A command that runs in a sandbox, seen from the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import struct
import subprocess
import termios
from collections.abc import AsyncIterator
from pathlib import Path

from agentlab.backends.interface import Unavailable
from agentlab.backends.oci.runtime import failure, message
from agentlab.base.process import ended

CHUNK_BYTES_MAX = 64 << 10
KILL_S_MAX = 10.0
_PID_S_MAX = 2.0

# The runtime's complaints about the command itself, which a shell would answer with 126 or 127.
_NOT_RUNNABLE = re.compile(r"permission denied|exec format error|is a directory|chdir|\bcwd\b", re.IGNORECASE)
_NOT_FOUND = re.compile(r"exec.*(not found|no such file or directory)", re.IGNORECASE)


class OciExecution:
    """See `Execution`.  Reads only when asked to, so a fast program waits for a slow reader and memory stays flat."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        *,
        stdin: int,
        streams: dict[int, str],
        log: int,
        pid_file: Path,
        terminal: int | None = None,
        between: bool = False,
    ) -> None:
        self._child = child
        self._stdin: int | None = stdin
        self._streams = streams  # descriptors that are still open, by name
        self._log = log
        self._pid_file = pid_file
        self._terminal = terminal
        self._between = between  # the runtime stands between this terminal and the guest's
        self._descriptors = {stdin, log, *streams}

    async def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            if self._stdin is None:
                raise BrokenPipeError("its standard input is closed")
            try:
                rest = rest[os.write(self._stdin, rest) :]
            except BlockingIOError:
                await writable(self._stdin)
            except OSError as error:
                raise BrokenPipeError("the program no longer reads") from error

    async def close_input(self) -> None:
        if self._terminal is not None:
            with contextlib.suppress(BrokenPipeError):
                await self.write(b"\x04")  # what a terminal takes for the end, at the beginning of a line
        elif self._stdin is not None:
            self._close(self._stdin)
            self._stdin = None

    async def output(self) -> AsyncIterator[tuple[str, bytes]]:
        while self._streams:
            idle = True
            for descriptor, name in tuple(self._streams.items()):
                try:
                    chunk = os.read(descriptor, CHUNK_BYTES_MAX)
                except BlockingIOError:
                    continue
                except OSError:
                    chunk = b""  # EIO: the last holder of the terminal has closed it
                idle = False
                if chunk:
                    yield name, chunk
                else:
                    del self._streams[descriptor]
                    if descriptor != self._terminal:
                        self._close(descriptor)
            if idle:
                await _ready(*self._streams)

    async def wait(self) -> int:
        status = await ended(self._child)
        if status < 0:
            return 128 - status
        if status in (126, 127, 255) or (status == 1 and not self._pid_file.exists()):
            return self._judged(status)
        return status

    def _judged(self, status: int) -> int:
        """The status of a program, or of a runtime that could not start it: only the runtime writes to its log."""
        if text := message(self._log):
            if (answer := _as_shell(text)) is None:
                raise failure(text, "exec")
            return answer
        return status

    async def resize(self, rows: int, columns: int) -> None:
        if self._terminal is None:
            return
        set_size(self._terminal, rows, columns)
        if self._between and self._child.poll() is None:
            self._child.send_signal(signal.SIGWINCH)  # it passes the size on to the inner terminal

    async def signal(self, number: int) -> None:
        if (pid := await self._pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def end(self) -> None:
        """Kill the program if it still runs, and let go of everything."""
        try:
            if (pid := await self._pid()) is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    # The group is the command's own.  Its leader's parent, the runtime, is not reaped before this
                    # returns, so the number still means the same.
                    os.killpg(os.getpgid(pid), signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            elif self._child.poll() is None:
                self._child.kill()
            async with asyncio.timeout(KILL_S_MAX):
                await ended(self._child)
        except TimeoutError:
            raise Unavailable("a command could not be ended", "It may be frozen: resume the sandbox.") from None
        finally:
            self._pid_file.unlink(missing_ok=True)
            for descriptor in tuple(self._descriptors):
                self._close(descriptor)

    async def _pid(self) -> int | None:
        """The program's process id on the host, while the runtime, its parent, has not reaped it."""
        waited = 0.0
        while self._child.poll() is None:
            try:
                if text := self._pid_file.read_text():
                    return int(text)
            except FileNotFoundError:
                pass
            if waited >= _PID_S_MAX:
                return None
            await asyncio.sleep(0.005)
            waited += 0.005
        return None

    def _close(self, descriptor: int) -> None:
        if descriptor in self._descriptors:
            self._descriptors.discard(descriptor)
            os.close(descriptor)


def set_size(terminal: int, rows: int, columns: int) -> None:
    """Tell a terminal its size; its foreground processes hear of it.  OSError if it is no terminal."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


async def writable(descriptor: int) -> None:
    """Return once a non-blocking descriptor takes bytes, or its reader has gone."""
    await _ready(descriptor, writing=True)


async def _ready(*descriptors: int, writing: bool = False) -> None:
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    try:
        for descriptor in descriptors:
            add(descriptor, event.set)
        await event.wait()
    finally:
        for descriptor in descriptors:
            remove(descriptor)


def _as_shell(text: str) -> int | None:
    if _NOT_RUNNABLE.search(text):
        return 126
    return 127 if _NOT_FOUND.search(text) else None
