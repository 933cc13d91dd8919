"""The disks of a VM that lives, changed through its monitor.  QEMU is handed open files, and opens none by its path."""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

from agentlab.backends.interface import Refused, Unavailable
from agentlab.backends.qemu.command import LOWEST_NODE, PORT_NAME, ROOT_DEVICE, ROOT_NODE, WRITING
from agentlab.backends.qemu.monitor import Monitor
from agentlab.base.clock import sleep

UNPLUG_S_MAX = 20.0
MERGE_S_MAX = 600.0
_POLL_S = 0.02
_TOP, _MERGE = "top{}", "merge"
_LAYERS = ("top", "below", ROOT_NODE)


async def stack(monitor: Monitor, disk: Path) -> None:
    """From here on, the machine writes to `disk`, which is empty, and what it wrote to before stays as it is."""
    known = {str(each["node-name"]) for each in await _nodes(monitor)}
    node = next(name for number in count(1) if (name := _TOP.format(number)) not in known)
    name = await _lent(monitor, disk)
    file = {"driver": "file", "filename": name, "discard": "unmap"}
    options = {"driver": "qcow2", "node-name": node, "file": file, "backing": None, **WRITING}
    try:
        await monitor.execute("blockdev-add", options)
        try:
            await monitor.execute("blockdev-snapshot", {"node": await _top(monitor), "overlay": node})
        except Refused:
            await monitor.execute("blockdev-del", {"node-name": node})
            raise
    except Refused:
        await monitor.take_back(name)
        raise


async def merge(monitor: Monitor) -> None:
    """Let what the machine writes to have all that is above the lowest of what it stands on; the machine goes on.

    Cancelling leaves that going on, and calling again waits for it.  Unavailable after MERGE_S_MAX, or if it
    could not be done.
    """
    if not await _merging(monitor):
        arguments = {"job-id": _MERGE, "device": await _top(monitor), "base-node": LOWEST_NODE}
        await monitor.execute("block-stream", arguments)
    try:
        async with asyncio.timeout(MERGE_S_MAX):
            while await _merging(monitor):
                await sleep(_POLL_S)
    except TimeoutError:
        raise Unavailable(f"the disk's layers were not merged within {MERGE_S_MAX:g} s", "Try again.") from None
    if (await _inserted(monitor))["backing_file_depth"] != 1:  # a job that failed vanishes like one that succeeded
        raise Unavailable("the disk's layers could not be merged", "If the host's disk is full, free space on it.")
    for each in await _nodes(monitor):
        if str(each["node-name"]).startswith(_LAYERS) and each["node-name"] != LOWEST_NODE:
            with contextlib.suppress(Refused):  # what the machine uses stays
                await _forget(monitor, str(each["node-name"]))


async def _merging(monitor: Monitor) -> bool:
    jobs: list[dict[str, Any]] = await monitor.execute("query-block-jobs")
    return any(each["device"] == _MERGE for each in jobs)


async def plug(monitor: Monitor, descriptor: int, port: int, serial: str) -> None:
    """Let a file that is open for writing be a disk of the machine, in one of its spare ports.

    The guest finds it by its serial number.  Raises Refused if the port is taken.
    """
    node, device = _names(port)
    await _forget(monitor, node)
    name = await monitor.lend(descriptor)
    # Unlike the sandbox's own disk, it must survive the host's loss of power as far as the guest asked for that.
    file = {"driver": "file", "filename": name, "discard": "unmap"}
    options = {"driver": "raw", "node-name": node, "file": file, "discard": "unmap", "detect-zeroes": "unmap"}
    try:
        await monitor.execute("blockdev-add", options)
        bus = PORT_NAME.format(port)
        await monitor.execute(
            "device_add", {"driver": "virtio-blk-pci", "id": device, "bus": bus, "drive": node, "serial": serial}
        )
    except Refused:
        await _forget(monitor, node)
        await monitor.take_back(name)
        raise


async def unplug(monitor: Monitor, port: int) -> None:
    """Take the disk in a port out, which its guest must agree to; quiet if there is none.

    Unavailable if the guest does not within UNPLUG_S_MAX.
    """
    node, device = _names(port)
    if await is_plugged(monitor, port):
        with contextlib.suppress(Refused):  # it is being taken out already
            await monitor.execute("device_del", {"id": device})
    try:
        async with asyncio.timeout(UNPLUG_S_MAX):
            while await is_plugged(monitor, port) or not await _could_forget(monitor, node):
                await sleep(_POLL_S)
    except TimeoutError:
        cause = f"the guest has not let go of its disk within {UNPLUG_S_MAX:g} s"
        raise Unavailable(cause, "Try again, or stop the sandbox.") from None


async def _could_forget(monitor: Monitor, node: str) -> bool:
    """A device has its disk for a moment longer than it is there."""
    try:
        await _forget(monitor, node)
    except Refused:
        return False
    return True


async def is_plugged(monitor: Monitor, port: int) -> bool:
    """Whether there is a disk in this port."""
    found: list[dict[str, str]] = await monitor.execute("qom-list", {"path": "/machine/peripheral"})
    return any(each["name"] == _names(port)[1] for each in found)


def _names(port: int) -> tuple[str, str]:
    return f"workspace{port}", f"workspace-disk{port}"


async def _nodes(monitor: Monitor) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await monitor.execute("query-named-block-nodes", {"flat": True})
    return found


async def _forget(monitor: Monitor, node: str) -> None:
    """Remove a block node that no device has, and what QEMU was lent for it; quiet if there is none."""
    for each in await _nodes(monitor):
        if each.get("node-name") == node:
            await monitor.execute("blockdev-del", {"node-name": node})
            if str(each["file"]).startswith("/dev/fdset/"):
                await monitor.take_back(each["file"])


async def _top(monitor: Monitor) -> str:
    """The name of what the machine writes to."""
    return str((await _inserted(monitor))["node-name"])


async def _inserted(monitor: Monitor) -> dict[str, Any]:
    devices: list[dict[str, Any]] = await monitor.execute("query-block")
    for each in devices:
        if f"/{ROOT_DEVICE}/" in f"{each.get('qdev', '')}/":
            return dict(each["inserted"])
    raise Refused("the VM has no disk", "Stop it and start it again.")


async def _lent(monitor: Monitor, file: Path) -> str:
    """For writing, and for reading alone, which is how it is opened again once something stands on it."""
    with ExitStack() as ours:
        both = [os.open(file, how | os.O_CLOEXEC) for how in (os.O_RDWR, os.O_RDONLY)]
        for each in both:
            ours.callback(os.close, each)
        return await monitor.lend(*both)
