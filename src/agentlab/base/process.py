"""The door to other programs."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NoReturn

from agentlab.base.tasks import to_the_end
from agentlab.base.text import one_line

OUTPUT_BYTES_MAX = 8 << 20
PIPE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A program that ended: its status (negative: the signal), and what it wrote."""

    status: int
    out: bytes
    err: bytes


class ProgramFailed(Exception):
    """A program could not be started, took too long, or ended with a status that was not expected."""

    def __init__(self, program: str, status: int | None, detail: str) -> None:
        self.program, self.status, self.detail = program, status, detail
        ended = "did not end in time" if status is None else f"ended with status {status}"
        super().__init__(f"{program} {ended}: {detail}" if detail else f"{program} {ended}")


def which(program: str) -> str | None:
    """Where `program` lies; the administrator's folders are searched even if PATH lacks them."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")


async def spawn(
    argv: Sequence[str],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    new_session: bool = False,
    pass_fds: Sequence[int] = (),
) -> asyncio.subprocess.Process:
    """Start a program; the caller reaps it.  A stream is a descriptor, `asyncio.subprocess.PIPE`, or None."""
    null = asyncio.subprocess.DEVNULL
    return await asyncio.create_subprocess_exec(
        *argv,
        stdin=null if stdin is None else stdin,
        stdout=null if stdout is None else stdout,
        stderr=null if stderr is None else stderr,
        env=None if env is None else dict(env),
        cwd=cwd,
        start_new_session=new_session,
        pass_fds=tuple(pass_fds),
    )


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    timeout_s: float = 60,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> Completed:
    """Run a program to its end and return what it wrote.

    Raises ProgramFailed if it cannot be started, exceeds `timeout_s`, or (with `check`) ends with a status other
    than 0.  On time-out and on cancellation the program's whole session is killed and reaped before this returns.
    """
    with ExitStack() as ours:
        with ExitStack() as theirs:
            given = _memory_file(stdin, theirs) if stdin else None
            (take_out, put_out), (take_err, put_err) = _pipe(ours, theirs), _pipe(ours, theirs)
            try:
                # Not by the event loop: uvloop copies the whole process to begin another, which takes 4 ms.
                child = start(argv, stdin=given, stdout=put_out, stderr=put_err, env=env, cwd=cwd)
            except OSError as error:
                raise ProgramFailed(argv[0], -1, error.strerror or str(error)) from error
        try:
            async with asyncio.timeout(timeout_s):
                out, err = await asyncio.gather(_drained(take_out), _drained(take_err))
                status = await ended(child)
        except TimeoutError:
            await _end(child)
            raise ProgramFailed(argv[0], None, f"limit {timeout_s:g} s") from None
        except asyncio.CancelledError:
            await _end(child)
            raise
    if check and status != 0:
        raise ProgramFailed(argv[0], status, one_line((err or out).decode(errors="replace")[-1000:], 600))
    return Completed(status=status, out=out[:OUTPUT_BYTES_MAX], err=err[:OUTPUT_BYTES_MAX])


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    take, put = os.pipe2(os.O_CLOEXEC)
    reader.callback(os.close, take)
    writer.callback(os.close, put)
    os.set_blocking(take, False)
    return take, put


async def _drained(descriptor: int) -> bytes:
    """All that is written to the other end until it is closed."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    parts: list[bytes] = []
    loop.add_reader(descriptor, ready.set)
    try:
        while True:
            await ready.wait()
            ready.clear()
            try:
                part = os.read(descriptor, PIPE_BYTES)
            except BlockingIOError:
                continue
            if not part:
                return b"".join(parts)
            parts.append(part)
    finally:
        loop.remove_reader(descriptor)


def _memory_file(content: bytes, owner: ExitStack) -> int:
    """An open file with `content` that has no name; unlike a pipe, it cannot break while the program ends early."""
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    owner.callback(os.close, descriptor)
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


async def _end(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    await to_the_end(ended(child))


def start(
    argv: Sequence[str],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program from the calling thread, whose namespaces it inherits, in a session of its own.

    Blocks for about a millisecond.  A stream is a descriptor or None (nothing).  Reap it with `ended`.  Raises OSError.
    """
    null = subprocess.DEVNULL
    return subprocess.Popen(
        argv,
        stdin=null if stdin is None else stdin,
        stdout=null if stdout is None else stdout,
        stderr=null if stderr is None else stderr,
        env=env,
        cwd=cwd,
        start_new_session=True,
        pass_fds=tuple(pass_fds),
    )


async def ended(child: subprocess.Popen[bytes]) -> int:
    """The status of a program from `start` once it has ended (negative: the signal).  Cancelling leaves it running."""
    if (status := child.poll()) is not None:
        return status
    loop = asyncio.get_running_loop()
    descriptor, over = os.pidfd_open(child.pid), asyncio.Event()
    try:
        loop.add_reader(descriptor, over.set)
        await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return child.wait()


def become(argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Go on as another program, in this very process: its id and its standard streams stay.  Raises ProgramFailed."""
    try:
        os.execve(argv[0], list(argv), dict(env))  # noqa: S606 - a program and its words, no shell
    except OSError as error:
        raise ProgramFailed(argv[0], -1, error.strerror or str(error)) from error


def detach(argv: Sequence[str], output: int, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a program that outlives us: in a session of its own, its output going to the descriptor `output`.

    `poll` on what is returned tells whether it has ended since.  Raises ProgramFailed if it cannot be started.
    """
    try:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd="/", start_new_session=True
        )
    except OSError as error:
        raise ProgramFailed(argv[0], -1, error.strerror or str(error)) from error
