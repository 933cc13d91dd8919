"""Starting commands in a sandbox: watched ones, and ones that outlive the daemon."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import stat
import subprocess
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from agentlab.backends.interface import Command, Refused, Unavailable
from agentlab.backends.oci import account
from agentlab.backends.oci.bundle import CONSOLE_BYTES_MAX, CONSOLE_DIR, PATH, process
from agentlab.backends.oci.execution import OciExecution, set_size, writable
from agentlab.backends.oci.runtime import Runtime, failure, message
from agentlab.backends.oci.syscalls import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, open_inside
from agentlab.base.inbox import DescriptorInbox
from agentlab.base.process import ended
from agentlab.base.tasks import TaskScope

START_S_MAX = 30.0
HANDED_OVER_S_MAX = 0.5
ARGUMENTS_BYTES_MAX = 1 << 20
_CONSOLE_FILE = f"{CONSOLE_DIR}/log".lstrip("/")
_numbers = count(1)


async def begin(
    runtime: Runtime, sandbox: str, bundle: Path, first_pid: int, command: Command, open_files_max: int
) -> OciExecution:
    """Start a command and watch it.  Raises Refused for an unknown user, Gone if the sandbox does not run."""
    block = _block(first_pid, command, open_files_max)
    pid_file = bundle / f"exec-{os.getpid()}-{next(_numbers)}.pid"
    with ExitStack() as undo, ExitStack() as passed:
        spec = _memory_file(block, passed)
        log = os.memfd_create("log", os.MFD_CLOEXEC)
        undo.callback(os.close, log)
        arguments = ["exec", "--process", f"/proc/self/fd/{spec}", "--pid-file", str(pid_file)]
        if command.tty:
            execution = await _with_terminal(runtime, sandbox, arguments, spec, log, pid_file, command)
        else:
            execution = await _with_pipes(runtime, sandbox, arguments, spec, log, pid_file, undo, passed)
        undo.pop_all()
        return execution


async def launch(
    runtime: Runtime, sandbox: str, first_pid: int, command: Command, stdin: bytes, open_files_max: int
) -> None:
    """Start a command that nobody watches, and give it its input.

    Raises as `begin`, and Unavailable if it does not read.
    """
    block = _block(first_pid, command, open_files_max)
    with ExitStack() as passed:
        spec, log = _memory_file(block, passed), os.memfd_create("log", os.MFD_CLOEXEC)
        passed.callback(os.close, log)
        take, give = os.pipe2(os.O_CLOEXEC)
        console = _console(first_pid)
        with ExitStack() as ours:
            ours.callback(os.close, give)
            with ExitStack() as theirs:
                theirs.callback(os.close, take)
                theirs.callback(os.close, console)
                arguments = ["exec", "--detach", "--process", f"/proc/self/fd/{spec}", sandbox]
                child = await runtime.spawn(arguments, log, stdin=take, stdout=console, stderr=console, pass_fds=[spec])
            await _fed(runtime, child, give, stdin, log)


async def _fed(runtime: Runtime, child: subprocess.Popen[bytes], give: int, stdin: bytes, log: int) -> None:
    os.set_blocking(give, False)
    try:
        async with asyncio.timeout(START_S_MAX):
            status = await ended(child)
            if status != 0:
                raise failure(message(log) or f"status {status}", f"{runtime.name} exec")
            rest = memoryview(stdin)
            while rest:
                try:
                    rest = rest[os.write(give, rest) :]
                except BlockingIOError:
                    await writable(give)
    except BrokenPipeError:
        raise Unavailable("the program ended before it had read its input") from None
    except TimeoutError:
        raise Unavailable(f"the program did not start and read its input within {START_S_MAX:g} s") from None
    finally:
        if child.poll() is None:
            child.kill()
            await asyncio.shield(ended(child))


def console_tail(first_pid: int, bytes_max: int) -> bytes:
    """The last bytes that launched programs wrote, while the sandbox lives."""
    try:
        with _root(first_pid) as root:
            return account.read_inside(root, _CONSOLE_FILE, bytes_max, tail=True, links=False)
    except OSError:
        return b""


def _block(first_pid: int, command: Command, open_files_max: int) -> dict[str, Any]:
    if sum(len(each) for each in command.argv) > ARGUMENTS_BYTES_MAX:
        raise Refused("the command line is too long", "Give large inputs through standard input or a file.")
    try:
        with _root(first_pid) as root:
            found = account.find(root, command.user)
    except OSError as error:
        raise failure("container not running", "exec") from error
    environment = {"PATH": PATH, "HOME": found.home, "USER": found.name, "LOGNAME": found.name, "LANG": "C.UTF-8"}
    if command.tty:
        environment["TERM"] = "xterm-256color"
    return process(
        command.argv,
        environment | command.env,
        cwd=command.cwd,
        uid=found.uid,
        gid=found.gid,
        groups=found.groups,
        terminal=(command.rows, command.columns) if command.tty else None,
        open_files_max=open_files_max,
    )


@contextmanager
def _root(first_pid: int) -> Iterator[int]:
    descriptor = os.open(f"/proc/{first_pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _memory_file(block: dict[str, Any], owner: ExitStack) -> int:
    # Not an argument and not a file: the environment may hold secrets, and /proc shows arguments to everyone.
    descriptor = os.memfd_create("process", os.MFD_CLOEXEC)
    owner.callback(os.close, descriptor)
    os.write(descriptor, json.dumps(block).encode())
    return descriptor


def _console(first_pid: int) -> int:
    """Where launched programs write: a small file in the sandbox's memory, nowhere if the guest tampered with it."""
    try:
        with _root(first_pid) as root:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            found = open_inside(root, _CONSOLE_FILE, flags, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    status = os.fstat(found)
    if not stat.S_ISREG(status.st_mode):
        os.close(found)
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    if status.st_size > CONSOLE_BYTES_MAX // 2:
        os.ftruncate(found, 0)  # a new program gets room; what the old ones wrote has been seen by now
    os.set_blocking(found, True)
    return found


async def _with_pipes(
    runtime: Runtime,
    sandbox: str,
    arguments: list[str],
    spec: int,
    log: int,
    pid_file: Path,
    undo: ExitStack,
    passed: ExitStack,
) -> OciExecution:
    pairs = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    ours = (pairs[0][1], pairs[1][0], pairs[2][0])
    for descriptor in ours:
        undo.callback(os.close, descriptor)
        os.set_blocking(descriptor, False)
    theirs = (pairs[0][0], pairs[1][1], pairs[2][1])
    for descriptor in theirs:
        passed.callback(os.close, descriptor)
    child = await runtime.spawn(
        [*arguments, sandbox], log, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2], pass_fds=[spec]
    )
    streams = {ours[1]: "stdout", ours[2]: "stderr"}
    return OciExecution(child, stdin=ours[0], streams=streams, log=log, pid_file=pid_file)


async def _with_terminal(
    runtime: Runtime, sandbox: str, arguments: list[str], spec: int, log: int, pid_file: Path, command: Command
) -> OciExecution:
    make = _terminal_handed_over if runtime.name == "crun" else _terminal_between
    child, master = await make(runtime, [*arguments, "--tty"], sandbox, spec, log, pid_file, command)
    os.set_blocking(master, False)
    return OciExecution(
        child,
        stdin=master,
        streams={master: "stdout"},
        log=log,
        pid_file=pid_file,
        terminal=master,
        between=make is _terminal_between,
    )


async def _terminal_handed_over(
    runtime: Runtime, arguments: list[str], sandbox: str, spec: int, log: int, pid_file: Path, _: Command
) -> tuple[subprocess.Popen[bytes], int]:
    # crun can stand between two terminals as well, but then it loses input beyond a page and changes of size.
    inbox = DescriptorInbox(pid_file.parent, f"{pid_file.stem}.tty")
    try:
        arguments = [*arguments, "--console-socket", inbox.name, sandbox]
        child = await runtime.spawn(arguments, log, pass_fds=[spec, inbox.folder])
        try:
            return child, await _received(inbox, child, log)
        except BaseException:
            child.kill()
            await asyncio.shield(ended(child))
            raise
    finally:
        inbox.close()


async def _received(inbox: DescriptorInbox, child: subprocess.Popen[bytes], log: int) -> int:
    async with TaskScope("terminal") as scope:
        receiving, ending = scope.start(inbox.receive(), "receive"), scope.start(ended(child), "end")
        await asyncio.wait([receiving, ending], return_when=asyncio.FIRST_COMPLETED, timeout=START_S_MAX)
        if ending.done():
            # A short command may have ended already, with its terminal still on the way to us.
            await asyncio.wait([receiving], timeout=HANDED_OVER_S_MAX)
        if not receiving.done():
            raise failure(message(log) or "no terminal was handed over", "exec")
        master: int = receiving.result()
    return master


async def _terminal_between(
    runtime: Runtime, arguments: list[str], sandbox: str, spec: int, log: int, _: Path, command: Command
) -> tuple[subprocess.Popen[bytes], int]:
    master, slave = pty.openpty()
    try:
        set_size(master, command.rows, command.columns)
        tty.setraw(slave)  # what is typed before the runtime listens must reach the inner terminal untouched
        child = await runtime.spawn(
            [*arguments, sandbox], log, stdin=slave, stdout=slave, stderr=slave, pass_fds=[spec]
        )
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    return child, master
