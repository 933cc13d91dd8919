"""Starting programs from the resident guest program, which is not copied for it if that can be helped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import termios
from collections.abc import Callable

from agentlab_guest import cgroups, kernel
from agentlab_guest.account import PATH
from agentlab_guest.orders import Execute
from agentlab_guest.reactor import Reactor
from agentlab_guest.whom import ROOT, Person

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CAPTURED_BYTES_MAX = 2000
NOT_RUNNABLE, NOT_FOUND = 126, 127
_OOM_SCORE = 300  # as in containers: the kernel takes commands before what keeps the machine together
Child = subprocess.Popen[bytes]


def spawn(order: Execute, person: Person, streams: tuple[int, int, int], prepare: Callable[[], None] | None) -> Child:
    """Start a program in a session of its own.  `prepare` runs in the child, which is forked for it.  OSError."""
    environment = {"PATH": PATH, "HOME": person.home, "USER": person.name, "LOGNAME": person.name, "LANG": "C.UTF-8"}
    if order.tty:
        environment["TERM"] = "xterm-256color"
    with contextlib.ExitStack() as birth:
        birth.enter_context(kernel.born_with_oom_score(_OOM_SCORE))
        if person.uid != os.getuid() or person.gid != os.getgid():
            birth.enter_context(kernel.children_of(person.uid, person.gid, person.groups))
        return subprocess.Popen(
            order.argv,
            cwd=order.cwd,
            env=environment | order.env,
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            start_new_session=True,
            preexec_fn=prepare,
            close_fds=False,  # each of ours closes with an exec; to look for others takes a millisecond when emulated
        )


def watch(reactor: Reactor, child: Child, ended: Callable[[int], Any]) -> None:
    """Tell the program's exit status once it has ended."""

    def told(status: int) -> None:
        child.returncode = status  # reaped here, so that Popen need not
        ended(status)

    reactor.child(child.pid, told)


def take_terminal() -> None:
    """For `prepare`: make standard input the terminal that controls the session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def capture(reactor: Reactor, argv: list[str], ended: Callable[[int, str], None]) -> None:
    """Run a program of the machine as root without input; tell its status and the end of what it wrote.

    127 and a remark if it cannot be started.
    """
    output = os.memfd_create("output", os.MFD_CLOEXEC)
    order = Execute(argv=argv, env={}, cwd="/", user="root", tty=False, rows=0, columns=0, detached=True)
    try:
        with open(os.devnull, "rb") as nothing:
            child = spawn(order, ROOT, (nothing.fileno(), output, output), None)
    except OSError as error:
        os.close(output)
        ended(NOT_FOUND, str(error))
        return

    def done(status: int) -> None:
        size = os.fstat(output).st_size
        text = os.pread(output, CAPTURED_BYTES_MAX, max(0, size - CAPTURED_BYTES_MAX)).decode(errors="replace")
        os.close(output)
        ended(status, text.strip())

    watch(reactor, child, done)


def entrance(group: int) -> Callable[[], None] | None:
    """For `prepare`: move into the control group behind this descriptor; nothing to do if it is -1."""
    # The right to move is the one of whoever opened the file, so the child may have another user by then.
    return None if group < 0 else lambda: _enter(group)


def _enter(group: int) -> None:
    os.write(group, b"0")


def new_group(name: str) -> int:
    """A control group for a launched program, so that all that it starts can be found; -1 where there are none."""
    if not os.path.exists(f"{cgroups.ROOT}/cgroup.controllers"):
        return -1
    os.makedirs(cgroups.LAUNCHED, exist_ok=True)
    for former in os.listdir(cgroups.LAUNCHED):
        with contextlib.suppress(OSError):  # not empty, or not a group
            os.rmdir(f"{cgroups.LAUNCHED}/{former}")
    os.mkdir(f"{cgroups.LAUNCHED}/{name}")
    return os.open(f"{cgroups.LAUNCHED}/{name}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
