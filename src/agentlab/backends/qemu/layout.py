"""Where a VM's things lie on the host."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agentlab.backends.interface import NotOurs
from agentlab.backends.ownership import INSPECT_BY_HAND, MarkedFolders
from agentlab.base.files import make_directory, remove_tree
from agentlab.model.ids import SandboxId
from agentlab.model.sandbox import Mark

# Short names, and never used from the root: the path of a Unix socket has at most 107 bytes.
CONTROL, MONITOR = "control", "monitor"


_BEARING = "bearing.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearing:
    """What a process is recognised by."""

    title: str  # among its arguments
    group: str  # its control group


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout(MarkedFolders):
    """The folders of one installation: `state` outlives a reboot, `run` need not.

    No VM's process can enter them: what it may use is handed to it as open files.
    """

    run: Path

    def disk(self, sandbox: SandboxId) -> Path:
        """What the sandbox wrote: a qcow2 overlay."""
        return self.home(sandbox) / "disk.qcow2"

    def origin(self, sandbox: SandboxId) -> Path:
        """The note that says what its disk stands on."""
        return self.home(sandbox) / "origin.json"

    def ran(self, sandbox: SandboxId) -> Path:
        """Exists once the sandbox has run: prepared memory no longer fits its disk."""
        return self.home(sandbox) / "ran"

    def waking(self, sandbox: SandboxId) -> Path:
        """The folder with the memory of a snapshot, if the next start shall bring that back."""
        return self.home(sandbox) / "waking"

    def snapshots(self, sandbox: SandboxId) -> Path:
        """A folder for each snapshot."""
        return self.home(sandbox) / "snapshots"

    def restoring(self, sandbox: SandboxId) -> Path:
        """The note of a restore that has been decided, and must be finished before anything else."""
        return self.home(sandbox) / "restoring.json"

    def room(self, sandbox: SandboxId) -> Path:
        """The folder with the sockets of a VM's process and what we noted about it."""
        return self.run / "sandboxes" / sandbox

    @property
    def spare_rooms(self) -> Path:
        """Rooms of VMs that are held ready."""
        return self.run / "spares"

    @property
    def spare_disks(self) -> Path:
        """Their disks, each in a folder of its own."""
        return self.state / "spares"

    def bearing(self, mark: Mark) -> Bearing:
        """The marks of the sandbox's process: its own, or those that it had before it was taken over."""
        found = read_note(self.room(mark.sandbox) / _BEARING)
        try:
            return Bearing(title=title(mark), group=self.cgroup(mark.sandbox)) if found is None else Bearing(**found)
        except TypeError as error:
            raise NotOurs(f"{self.room(mark.sandbox)} holds a note that is not ours", INSPECT_BY_HAND) from error

    @property
    def prepared(self) -> Path:
        """Memory of machines that have been booted."""
        return self.state / "prepared"

    def prepare(self) -> None:
        """Make the folders, and finish removals that a crash interrupted."""
        for folder in (self.state, self.state / "sandboxes", self.prepared, self.run, self.run / "sandboxes"):
            if not folder.is_dir():
                make_directory(folder, 0o755 if folder in (self.state, self.run) else 0o700)
        self.finish_removals()

    def remove(self, sandbox: SandboxId) -> None:
        """Remove all folders of a sandbox; the one with the mark goes at once and last.  Raises OSError."""
        remove_tree(self.room(sandbox))
        self.remove_home(sandbox)

    def verify(self, mark: Mark) -> bool:
        """Whether the sandbox exists, with this mark.  NotOurs if with another."""
        return self.verify_home(mark)


def title(mark: Mark) -> str:
    """The mark as a VM's process bears it among its arguments, where everyone may read it."""
    digest = hashlib.sha256(json.dumps(asdict(mark), sort_keys=True).encode()).hexdigest()
    return f"agentlab:{mark.installation}:{mark.sandbox}:{digest[:16]}"


def note_bearing(room: Path, bearing: Bearing) -> None:
    """Write down what the process bears whose room this is, if it was not begun for a sandbox."""
    write_note(room / _BEARING, asdict(bearing))


def write_note(file: Path, content: dict[str, Any]) -> None:
    """Put a JSON object at `file`, all at once; it need not outlive the host's crash."""
    scratch = file.with_name(f".{file.name}.new")
    scratch.write_text(json.dumps(content))
    scratch.replace(file)


def read_note(file: Path) -> dict[str, Any] | None:
    """The JSON object at `file`; None if there is none that can be read."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
