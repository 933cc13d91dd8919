"""What we wrote down of each sandbox's VM before and after each call.  Numbers on the cluster are used again, so that
only what stands here beforehand is ours."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from agentlab.backends.ownership import MarkedFolders
from agentlab.backends.proxmox.ownership import Recorded
from agentlab.base.files import make_directory, write_atomic
from agentlab.model.ids import SandboxId
from agentlab.model.sandbox import Mark

RECORD = "vm.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmRecord:
    """One sandbox's VM.  `vmid` is written before the clone is asked for."""

    vmid: int
    node: str  # where it was last seen
    template: int  # the VMID that it was cloned from
    storage: str
    memory_bytes: int
    cpus: float
    disk_bytes: int
    made: bool = False  # the clone has ended well
    asked: str = ""  # the node that was asked for the clone, and works on it: the template's
    upid: str = ""  # of the clone, while it is not known to have ended
    grown: bool = False  # the disk has its size
    identified: bool = False  # our uuid was set
    armed: bool = False  # configured for the next start, which has not been asked for
    invited: bool = False  # its configuration still holds an invitation
    policed: bool = False  # its card is under its policy; false again once it was unplugged
    unplugged: bool = False  # its card is cut off
    network: str = ""  # the mode that its policy is for
    ran: bool = False  # it has been asked to start, and not been seen to have stopped since
    why: str = ""  # it was placed there
    hostname: str = ""
    secrets_bytes: int = 0
    started: bool = False  # its guest program has come home and knows who it is

    @property
    def recorded(self) -> Recorded:
        """For `ownership.is_ours`."""
        return Recorded(vmid=self.vmid, identified=self.identified)


@dataclass(frozen=True, slots=True, kw_only=True)
class Records(MarkedFolders):
    """A folder for each sandbox: its mark, and the record of its VM."""

    def prepare(self) -> None:
        """Make the folders, and finish removals that a crash interrupted."""
        for folder in (self.state, self.state / "sandboxes"):
            make_directory(folder)
        self.finish_removals()

    def read(self, sandbox: SandboxId) -> VmRecord | None:
        """None before a number was chosen.  ValueError if what is there is not ours."""
        try:
            fields = json.loads((self.home(sandbox) / RECORD).read_bytes())
            return VmRecord(**fields)
        except FileNotFoundError:
            return None
        except TypeError as error:
            raise ValueError(f"the record of {sandbox}'s VM cannot be read: {error}") from error

    def write(self, sandbox: SandboxId, record: VmRecord) -> VmRecord:
        """Durable on return.  Raises OSError."""
        write_atomic(self.home(sandbox) / RECORD, json.dumps(asdict(record)).encode())
        return record

    def change(self, sandbox: SandboxId, record: VmRecord, changes: Mapping[str, object]) -> VmRecord:
        """Write changes to what stands there; `record` is what the caller knows of it.  Durable on return.

        Nothing is written of a VM that is no longer the sandbox's.
        """
        standing = self.read(sandbox)
        changed = replace(standing if standing is not None else record, **changes)  # type: ignore[arg-type]
        if standing is not None and standing.vmid != record.vmid:
            return replace(record, **changes)  # type: ignore[arg-type]
        return changed if changed == standing else self.write(sandbox, changed)

    def all(self) -> Iterator[tuple[Mark, VmRecord | None]]:
        """Of all sandboxes of this installation."""
        for mark in self.marks():
            yield mark, self.read(mark.sandbox)

    def vmids(self) -> Collection[int]:
        """The numbers that were chosen."""
        return {record.vmid for _, record in self.all() if record is not None}
