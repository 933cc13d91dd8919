"""The walls, seen from inside: before anything but the template's own programs runs, the guest tries to get out.

The cluster's firewall is a service that looks at its files every 10 s; that they read back does not say that it runs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from agentlab.backends.interface import Command, Refused
from agentlab.backends.link.control import Control
from agentlab.base.clock import Clock, sleep

# Whoever answers at all, by a refusal too, was reached.  On a network of one cluster an answer takes a millisecond.
ANSWER_S = 0.3
PROGRAM_S_MAX = 20.0
PAUSE_S = 1.0
TARGETS_MAX = 16

_PROGRAM = """
import errno, json, select, socket, sys, time
targets, wait_s = json.loads(sys.argv[1]), float(sys.argv[2])
asked = {}
for host, port in targets:
    one = socket.socket()
    one.setblocking(False)
    status = one.connect_ex((host, port))
    if status in (0, errno.ECONNREFUSED):
        print(f"{host}:{port}")
    elif status == errno.EINPROGRESS:
        asked[one.fileno()] = (one, f"{host}:{port}")
end = time.monotonic() + wait_s
poll = select.poll()
for number in asked:
    poll.register(number, select.POLLOUT)
while asked and (left := end - time.monotonic()) > 0:
    for number, _ in poll.poll(left * 1000):
        one, name = asked.pop(number)
        poll.unregister(number)
        status = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status in (0, errno.ECONNREFUSED):
            print(name)
"""


async def reached(control: Control, targets: Sequence[tuple[str, int]]) -> list[str]:
    """Those of the targets that the guest gets an answer from.  Unavailable if it cannot be asked."""
    if not targets:
        return []
    argv = ("python3", "-I", "-S", "-c", _PROGRAM, json.dumps(targets[:TARGETS_MAX]), str(ANSWER_S))
    said = b""
    async with asyncio.timeout(PROGRAM_S_MAX), control.running(Command(argv=argv)) as execution:
        async for stream, chunk in execution.output():
            said += chunk if stream == "stdout" else b""
        status = await execution.wait()
    if status != 0:
        raise Refused(
            f"the guest could not try its walls: python3 ended with status {status}",
            "The template needs Python 3; see `agentlab template list`.",
        )
    return said.decode(errors="replace").split()


async def require_walls(control: Control, targets: Sequence[tuple[str, int]], limit_s: float, clock: Clock) -> None:
    """Return once nothing answers any more.  Refused if something still does after `limit_s`."""
    began = clock.monotonic()
    while found := await reached(control, targets):
        if clock.monotonic() - began > limit_s:
            raise Refused(
                f"the cluster's firewall does not hold: from inside, {', '.join(found)} answered",
                "Enable the firewall of the datacenter (Datacenter → Firewall → Options), and see on the node whether "
                "`pve-firewall status` says enabled/running.  The sandbox was stopped.",
            )
        await sleep(PAUSE_S)
