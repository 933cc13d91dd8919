"""Work done with a private mount table, in a thread that exists for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from agentlab.backends.oci.syscalls import unshare_mounts
from agentlab.base.tasks import to_the_end

T = TypeVar("T")


async def with_private_mounts(work: Callable[[], T]) -> T:
    """Run the blocking `work` in a fresh thread whose mounts nobody else sees; its children inherit them.

    Nothing mounted there needs to be unmounted: it goes away with the thread and its children.  So no folder of the
    host ever has a template mounted in it, and a crash at any point leaves nothing behind.
    Cancellation is delayed until `work` has ended, so that nobody acts on a half-made thing; `work` must be bounded.
    """
    return await _in_own_thread(lambda: _prepared(work))


async def _in_own_thread(work: Callable[[], T]) -> T:
    # Not a pooled thread: one that has unshared its mounts can never serve anything else.
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="private-mounts")
    try:
        return await to_the_end(asyncio.wrap_future(executor.submit(work)))
    finally:
        executor.shutdown(wait=False)


def _prepared(work: Callable[[], T]) -> T:
    unshare_mounts()
    return work()
