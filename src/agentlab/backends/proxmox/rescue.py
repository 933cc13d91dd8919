"""What a machine that did not come home can still say: the guest agent's word, if it has one."""

from __future__ import annotations

import asyncio

from agentlab.backends.proxmox import lenient
from agentlab.backends.proxmox.answers import ProxmoxError
from agentlab.backends.proxmox.cluster import Cluster
from agentlab.backends.proxmox.records import VmRecord
from agentlab.base.clock import sleep
from agentlab.base.text import one_line

RESCUE_S_MAX = 15.0  # an agent that is not there is waited for, 3 s at each call
POLL_S = 0.3
WORDS_LENGTH_MAX = 1200
# By a shell: a program that is missing would break the answer itself.
_SCRIPT = (
    "systemctl --no-pager --lines=8 status agentlab-guest.service 2>&1 | tail -n 12; "
    "ip -br address 2>&1 | head -n 8; ip route 2>&1 | head -n 4"
)


async def last_words(cluster: Cluster, record: VmRecord) -> str:
    """A bounded line for people; empty if nobody answers.  Guest text: hostile, and only to be shown."""
    try:
        async with asyncio.timeout(RESCUE_S_MAX):
            return one_line(await _asked(cluster, record), WORDS_LENGTH_MAX)
    except (ProxmoxError, TimeoutError):
        return ""


async def _asked(cluster: Cluster, record: VmRecord) -> str:
    call = cluster.transport.call
    begun = await call("POST", cluster.path(record, "agent", "exec"), {"command": ["/bin/sh", "-c", _SCRIPT]})
    pid = lenient.integer(lenient.row(begun), "pid")
    while True:
        # An answer with its end is given once: nothing here may ask again after it.
        state = lenient.row(await call("GET", cluster.path(record, "agent", "exec-status"), {"pid": pid}))
        if lenient.truth(state, "exited"):
            return lenient.text(state, "out-data") or lenient.text(state, "err-data")
        await sleep(POLL_S)
