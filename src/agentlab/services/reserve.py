"""Disk space that is set aside, so that things can still be ended when the disk is full."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from agentlab.base.files import free_bytes
from agentlab.errors import DiskFull
from agentlab.store.database import Database, Tx

log = logging.getLogger(__name__)

T = TypeVar("T")
RESERVE_BYTES = 16 << 20  # some thousand rows and events: enough to stop, harvest and destroy what there is


class Reserve:
    """A file of RESERVE_BYTES beside the database, given up for a write that frees space, and made again later."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self) -> bool:
        """Set the space aside, if there is plenty and it is not there yet; whether it is there."""
        if self._path.exists():
            return True
        if free_bytes(self._path.parent) < 4 * RESERVE_BYTES:
            return False
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        except OSError as error:
            self._path.unlink(missing_ok=True)
            log.warning("no space could be set aside", extra={"cause": error.strerror})
            return False
        finally:
            os.close(descriptor)
        return True

    def give_up(self) -> bool:
        """Free the space; whether there was any."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        log.warning("the disk is full; the reserve is given up so that things can be ended")
        return True

    async def write(self, database: Database, fn: Callable[[Tx], T]) -> T:
        """`database.write(fn)`; on a full disk once more with the reserve given up.  Raises DiskFull after that."""
        try:
            return await database.write(fn)
        except DiskFull:
            if not self.give_up():
                raise
            return await database.write(fn)
