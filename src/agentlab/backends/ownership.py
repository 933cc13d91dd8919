"""The folder of each sandbox, and the mark in it that says whose it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from agentlab.backends.interface import NotOurs
from agentlab.base.files import make_directory, remove_tree, sync_directory, write_atomic
from agentlab.model.ids import InstallationId, SandboxId, is_id
from agentlab.model.sandbox import Mark

INSPECT_BY_HAND = "Nothing was touched.  Look at it by hand; two daemons must not share a state directory."
_MAKING, _REMOVING = "new", "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedFolders:
    """What one installation holds in `state`, which outlives a reboot."""

    installation: InstallationId
    state: Path

    def home(self, sandbox: SandboxId) -> Path:
        """The folder with a sandbox's mark and disk.  It exists from the mark's first to its last moment."""
        assert is_id(sandbox), sandbox
        return self.state / "sandboxes" / sandbox

    @property
    def cgroup_parent(self) -> str:
        """The installation's control group, from the root of each hierarchy."""
        return f"/agentlab-{self.installation}"

    def cgroup(self, sandbox: SandboxId) -> str:
        """The sandbox's control group."""
        return f"{self.cgroup_parent}/{sandbox}"

    def finish_removals(self) -> None:
        """Remove what a crash left half made or half removed."""
        for leftover in (self.state / "sandboxes").glob(".*"):
            sandbox, _, kind = leftover.name[1:].rpartition(".")
            if kind in (_MAKING, _REMOVING) and is_id(sandbox):  # what else is hidden there is not ours
                remove_tree(leftover)

    def mark(self, sandbox: SandboxId) -> Mark | None:
        """The mark that a sandbox's folder bears, whosever it is; None if there is no such folder."""
        try:
            fields = json.loads((self.home(sandbox) / "mark.json").read_bytes())
            return Mark(**fields)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise NotOurs(f"{self.home(sandbox)} bears no readable mark: {error}", INSPECT_BY_HAND) from error

    def marks(self) -> Iterator[Mark]:
        """The marks of this installation; what is unreadable or another's is passed over."""
        for folder in sorted((self.state / "sandboxes").iterdir()):
            if not is_id(folder.name):
                continue
            try:
                mark = self.mark(SandboxId(folder.name))
            except NotOurs:
                continue
            if mark is not None and mark.installation == self.installation:
                yield mark

    def verify_home(self, mark: Mark) -> bool:
        """Whether the sandbox's folder exists, with this mark.  NotOurs if with another."""
        found = self.mark(mark.sandbox)
        if found is not None and found != mark:
            raise NotOurs(f"{self.home(mark.sandbox)} bears another mark than ours", INSPECT_BY_HAND)
        return found is not None

    def write_mark(self, mark: Mark) -> None:
        """Make the sandbox's folder, which appears together with its mark; durable on return."""
        home = self.home(mark.sandbox)
        scratch = home.with_name(f".{mark.sandbox}.{_MAKING}")
        remove_tree(scratch)
        make_directory(scratch)
        write_atomic(scratch / "mark.json", json.dumps(asdict(mark)).encode())
        scratch.rename(home)
        sync_directory(home.parent)

    def remove_home(self, sandbox: SandboxId) -> None:
        """Remove the folder with the mark, which goes at once.  Raises OSError."""
        home = self.home(sandbox)
        doomed = home.with_name(f".{sandbox}.{_REMOVING}")
        remove_tree(doomed)
        try:
            home.rename(doomed)
        except FileNotFoundError:
            return
        remove_tree(doomed)
