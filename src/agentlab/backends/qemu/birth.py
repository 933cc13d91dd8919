"""Beginning a VM's process: its files opened by us, handed to it, and closed here."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from agentlab.backends.qemu.command import Files, Shape, command
from agentlab.backends.qemu.layout import CONTROL, MONITOR
from agentlab.backends.qemu.process import BegunProcess, Confinement, begin
from agentlab.backends.qemu.sockets import listening
from agentlab.backends.qemu.tap import index_of, open_tap


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """All that one process is made from."""

    title: str
    shape: Shape
    room: Path  # its sockets and notes go there
    confinement: Confinement
    command_line: str
    kernel: Path
    initrd: Path
    disk: Path
    below: tuple[Path, ...]  # the lowest first
    memory: int  # a descriptor, which stays the caller's
    tap: str | None  # the name of the tap to make, if the shape has a network
    state: Path | None = None  # saved state to load
    bare: bool = False  # it is that of the devices alone
    shared: bool = False  # its memory shall be saved
    program: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Born:
    """A process that has begun, and what it holds."""

    begun: BegunProcess
    tap: int | None  # the interface's index
    state: int | None  # under which number it has inherited the saved state


def give_birth(plan: Blueprint) -> Born:
    """Open everything, start the process, and close what is now its own.  Raises OSError, Unavailable."""
    with ExitStack() as ours:

        def opened(path: Path, flags: int = os.O_RDONLY) -> int:
            return kept(os.open(path, flags | os.O_CLOEXEC))

        def kept(descriptor: int) -> int:
            ours.callback(os.close, descriptor)
            return descriptor

        tap = None if plan.tap is None else kept(open_tap(plan.tap))
        files = Files(
            disk=opened(plan.disk, os.O_RDWR),
            below=tuple(opened(each) for each in plan.below),
            memory=plan.memory,
            kernel=opened(plan.kernel),
            initrd=opened(plan.initrd),
            control=kept(listening(plan.room, CONTROL)),
            monitor=kept(listening(plan.room, MONITOR)),
            tap=tap,
        )
        state = None if plan.state is None else opened(plan.state)
        words = command(
            plan.title,
            plan.shape,
            files,
            plan.command_line,
            shared=plan.shared,
            incoming=state is not None,
            bare=plan.bare,
            program=plan.program,
        )
        passed = files.all if state is None else (*files.all, state)
        begun = begin(words, plan.room, plan.confinement, passed)
        return Born(begun=begun, tap=None if plan.tap is None else index_of(plan.tap), state=state)
