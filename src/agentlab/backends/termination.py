"""Ending processes politely: asked, waited for without polling, within a time."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable


def ask_to_end(pids: Iterable[int], number: signal.Signals) -> list[int]:
    """Signal each process; those that existed."""
    asked = []
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        asked.append(pid)
    return asked


async def all_ended(pids: Iterable[int], within_s: float) -> bool:
    """Wait until all of these processes have ended; False if some live on after `within_s`."""
    waiting: dict[int, asyncio.Event] = {}
    loop = asyncio.get_running_loop()
    try:
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            waiting[descriptor] = asyncio.Event()
            loop.add_reader(descriptor, waiting[descriptor].set)
        async with asyncio.timeout(within_s):
            for event in waiting.values():
                await event.wait()
        return True
    except TimeoutError:
        return False
    finally:
        for descriptor in waiting:
            loop.remove_reader(descriptor)
            os.close(descriptor)
