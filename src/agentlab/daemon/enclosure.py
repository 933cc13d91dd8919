"""The namespaces in which a daemon without root is root, kept by a process that does nothing else.

That process, and pasta beside it, outlive the daemon while sandboxes do: the next daemon joins the same namespaces.
Both are noted in the run directory with their start, so that a process id used again is not taken for theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentlab.backends.first_process import FirstProcess, note, noted
from agentlab.base.clock import SystemClock, sleep
from agentlab.base.files import make_directory, remove_tree
from agentlab.base.process import ProgramFailed, ended, run, start, which
from agentlab.daemon import pasta, prerequisites
from agentlab.daemon.pasta import NoWayOut
from agentlab.daemon.prerequisites import SUBGID, SUBUID, IdRange

READY_S_MAX = 10.0
CALL_S_MAX = 10.0
RANGES_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Enclosure:
    """What is noted of one installation's namespaces."""

    folder: Path

    @property
    def holder(self) -> FirstProcess | None:
        """The process that keeps them, if it lives and they are complete."""
        return _living(self.folder / "holder") if (self.folder / "complete").exists() else None

    @property
    def way_out(self) -> str | None:
        """None while pasta runs; else why there is none, and what to do."""
        if _living(self.folder / "pasta") is not None:
            return None
        try:
            return (self.folder / "no-way-out").read_text()
        except OSError:
            return "pasta has ended.  Restart the daemon."

    async def stand(self, uid: int, gid: int) -> int:
        """Find the namespaces or make them, with a way out if there can be one; the holder's process id.

        Called from outside.  Raises ProgramFailed, OSError.
        """
        found = self.holder
        if found is None:
            self.fall()
            for name in ("holder", "pasta"):
                make_directory(self.folder / name)
            found = await self._hold(uid, gid)
        if _living(self.folder / "pasta") is None:
            await self._connect(found.pid)
        return found.pid

    def fall(self) -> None:
        """End what keeps the namespaces; they go with the last process in them.  Quiet if nothing stands."""
        for name in ("pasta", "holder"):
            if (process := _living(self.folder / name)) is not None:
                process.kill()
        remove_tree(self.folder)

    async def _hold(self, uid: int, gid: int) -> FirstProcess:
        unshare = which("unshare") or "unshare"
        # Slave: what the host mounts appears inside, and what it unmounts is not held back by us.
        child = start([unshare, "--user", "--mount", "--net", "--propagation", "slave", "sleep", "infinity"])
        try:
            # Noted at once: whatever ends us from here on, the next start ends what is left.
            found = note(self.folder / "holder", child.pid)
            await _apart(child.pid)
            for program, own, file in (("newuidmap", uid, SUBUID), ("newgidmap", gid, SUBGID)):
                mapping = _mapping(own, prerequisites.granted(file, uid))
                await run([which(program) or program, str(child.pid), *mapping], timeout_s=CALL_S_MAX)
            # No IPv6 address of the kernel's own making, and a loopback, before anything else is there.
            settings = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set lo up"
            with suppress(ProgramFailed):
                await run([*pasta.inside(child.pid, "--net"), "sh", "-c", settings], timeout_s=CALL_S_MAX)
            if found is None or not found.lives():
                raise ProgramFailed(unshare, child.poll(), "the process that keeps the namespaces ended at once")
            (self.folder / "complete").touch()
            return found
        except BaseException:
            child.kill()
            await asyncio.shield(ended(child))
            raise

    async def _connect(self, holder: int) -> None:
        reason = self.folder / "no-way-out"
        try:
            await pasta.connect(holder, self.folder, lambda pid: note(self.folder / "pasta", pid))
            reason.unlink(missing_ok=True)
        except NoWayOut as error:
            reason.write_text(f"{error}.  {error.remedy}")


def _mapping(own: int, granted: Sequence[IdRange]) -> list[str]:
    """The arguments of newuidmap: root inside is the user, and the granted ids follow without a gap."""
    words, first = ["0", str(own), "1"], 1
    for each in granted[:RANGES_MAX]:
        words += [str(first), str(each.first), str(each.count)]
        first += each.count
    return words


async def _apart(pid: int) -> None:
    """Wait until `unshare` has become the program that it starts; ProgramFailed if it ends instead."""
    clock = SystemClock()
    deadline = clock.monotonic() + READY_S_MAX
    while True:
        if Path(f"/proc/{pid}/comm").read_text().strip() == "sleep":
            return
        if clock.monotonic() > deadline or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            raise ProgramFailed("unshare", None, "no namespaces were made")
        await sleep(0.002)


def _living(folder: Path) -> FirstProcess | None:
    found = noted(folder)
    return found if found is not None and found.lives() else None
