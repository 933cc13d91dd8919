"""A sandbox as it is now, from files, /proc and what QEMU last said."""

from __future__ import annotations

from pathlib import Path

from agentlab.backends import first_process
from agentlab.backends.interface import Gone, Unavailable
from agentlab.backends.qemu import process
from agentlab.backends.qemu.host import Host
from agentlab.backends.qemu.identity import noted_role
from agentlab.backends.qemu.layout import Layout, read_note
from agentlab.backends.qemu.vm import EXIT, OVER, Vm
from agentlab.base.text import one_line
from agentlab.model.network import LinkEnd, Tap, Unplugged
from agentlab.model.sandbox import Mark, Observed, Power

STARTED = "started"  # a file in the room: the guest has been told whom it is
HELD = "held"  # a file in the room: we hold the running guest for a moment


async def observed(layout: Layout, host: Host, vm: Vm | None, mark: Mark) -> Observed:
    """What the sandbox that bears `mark` does; `vm` is its process, if one lives."""
    room = layout.room(mark.sandbox)
    status = None if vm is None else await _status(vm)
    if status is None or status in OVER:
        return Observed(mark=mark, power=Power.STOPPED, exit_detail=_exit_detail(layout, host, mark))
    role = noted_role(room)
    end: LinkEnd | None = None
    if role is not None:
        end = Unplugged() if role.tap is None else Tap(role.tap)
    return Observed(mark=mark, power=_power(room, status), end=end)


def _power(room: Path, status: str) -> Power:
    if not (room / STARTED).exists():
        return Power.ARMED
    # "io-error": the host's disk was full; once there is space, resuming repeats what could not be written.
    return Power.RUNNING if status == "running" or (room / HELD).exists() else Power.PAUSED


async def _status(vm: Vm) -> str | None:
    try:
        return await vm.status()
    except Gone:
        return None
    except Unavailable:
        return "running"  # it lives, and is too busy to answer; the next look tells more


def _exit_detail(layout: Layout, host: Host, mark: Mark) -> str:
    room = layout.room(mark.sandbox)
    if (noted := read_note(room / EXIT)) is not None:
        return str(noted.get("detail", ""))
    if first_process.noted(room) is None:  # it was stopped in order, or never ran
        return ""
    if host.cgroups.oom_kills(layout.bearing(mark).group):
        return "out of memory: the kernel ended the VM at its memory limit"
    said = one_line(process.complaint(room), 300)
    return f"the VM's process ended{f': {said}' if said else ''}"
