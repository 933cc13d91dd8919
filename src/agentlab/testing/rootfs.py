"""A small Debian root file system for tests, made once per machine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agentlab.base.files import exclusive_lock, make_directory, remove_tree
from agentlab.base.process import run

SUITE = "bookworm"
PACKAGES = ("python3-minimal", "git", "procps")
BUILD_S_MAX = 600
_VERSION = 1  # raise when the content shall change, so that machines build it anew


def test_rootfs(*more: str) -> Path:
    """The directory of a minimal Debian with Python, git and procps; treat it as read-only, others use it too.

    `more` are further packages; each set of them has a directory of its own, below $AGENTLAB_TEST_CACHE (default
    ~/.cache/agentlab-tests).  The first caller on a machine builds it, in about half a minute, while others wait.
    Needs root, mmdebstrap and a Debian mirror, once.  Raises ProgramFailed if the build fails.
    """
    cache = make_directory(test_cache())
    finished = cache / "-".join((f"rootfs-{SUITE}-{_VERSION}", *sorted(more)))
    if finished.is_dir():
        return finished
    with exclusive_lock(cache / "rootfs.lock", wait=True):
        if not finished.is_dir():
            scratch = cache / f"{finished.name}.partial"
            remove_tree(scratch)
            with ThreadPoolExecutor(max_workers=1) as thread:  # the caller's thread may have a running loop
                thread.submit(lambda: asyncio.run(_build(scratch, more))).result()
            scratch.rename(finished)
    return finished


test_rootfs.__test__ = False  # type: ignore[attr-defined]  # its name looks like a test to pytest


def test_cache() -> Path:
    """Where tests keep what is slow to make; the parent folders may not exist yet."""
    named = os.environ.get("AGENTLAB_TEST_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "agentlab-tests"


test_cache.__test__ = False  # type: ignore[attr-defined]


async def _build(target: Path, more: Sequence[str]) -> None:
    include = f"--include={','.join((*PACKAGES, *more))}"
    await run(
        ["mmdebstrap", "--variant=minbase", "--mode=root", include, SUITE, str(target)],
        timeout_s=BUILD_S_MAX,
    )
    target.chmod(0o755)
