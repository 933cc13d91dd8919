"""Which way home leads: a port of the machine's own, or an invitation in what its firmware says."""

from __future__ import annotations

import os

from agentlab_guest import identity
from agentlab_guest.port import DevicePort, Port, SocketPort, is_port
from agentlab_guest.reactor import Reactor
from agentlab_guest.strict import Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentlab_guest.invitation import Invitation

LOOK_S = 1.0
LOOKS_MAX = 60  # then it is said on the console, and the program begins anew
_READ_BYTES = 4096


class NoWay(Exception):
    """There is neither, and what was found instead."""


def find(
    device: str, serial: str | None, run_dir: str, reactor: Reactor, *, machine: bool, looks_max: int = LOOKS_MAX
) -> Port:
    """The way home, waited for; the network it needs is set up.  Raises NoWay, StepFailed.

    `serial` is the file that may hold an invitation; without one, `device` is made where it is not.  Without `machine`
    this is a process on somebody's machine, which is not touched.
    """
    if serial is None:
        return DevicePort(device, reactor) if is_port(device) else SocketPort(device, reactor)
    remark = ""
    for _ in range(looks_max):
        if is_port(device):
            return DevicePort(device, reactor)
        invitation, remark = _invited(serial)
        if invitation is not None:
            if machine:
                identity.join(invitation)
            # Most machines have a port: their memory need not hold what TLS takes.
            from agentlab_guest.dialled import DialledPort

            return DialledPort(reactor, invitation, run_dir)
        reactor.after(LOOK_S, lambda: None)
        reactor.turn()
    raise NoWay(f"there is no {device}, and {serial} {remark}")


def _invited(serial: str) -> tuple[Invitation | None, str]:
    if not os.path.exists(serial):
        return None, "does not exist"
    from agentlab_guest.invitation import parse

    try:
        with open(serial, "rb") as file:
            return parse(file.read(_READ_BYTES).rstrip(b"\n")), ""
    except (OSError, Malformed) as error:
        return None, f"holds no invitation: {error}"
