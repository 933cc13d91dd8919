"""Where a container's things lie on the host, and the marks that they bear."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from agentlab.backends.interface import NotOurs
from agentlab.backends.ownership import INSPECT_BY_HAND, MarkedFolders
from agentlab.base.files import make_directory, remove_tree
from agentlab.model.ids import SandboxId
from agentlab.model.sandbox import Mark

ANNOTATIONS = {
    "installation": "org.agentlab.installation",
    "sandbox": "org.agentlab.sandbox",
    "nonce": "org.agentlab.nonce",
}
MARKS_KEPT_MAX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout(MarkedFolders):
    """The folders of one installation: `state` outlives a reboot, `run` need not."""

    run: Path

    def disk(self, sandbox: SandboxId) -> Path:
        """The image, or without loop devices the folder, that holds what the sandbox wrote."""
        return self.home(sandbox) / "disk.img"

    def bundle(self, sandbox: SandboxId) -> Path:
        """The folder with the runtime's configuration, log and what we noted about the running container."""
        return self.run / "sandboxes" / sandbox

    @property
    def runtime_root(self) -> Path:
        """The runtime's own state; no other program's containers are in it."""
        return self.run / "runtime"

    @property
    def blanks(self) -> Path:
        """Formatted empty disks."""
        return self.state / "blank"

    def prepare(self) -> None:
        """Make the folders, and finish removals that a crash interrupted."""
        for folder in (self.state, self.state / "sandboxes", self.run, self.run / "sandboxes", self.runtime_root):
            if not folder.is_dir():
                make_directory(folder, 0o755 if folder in (self.state, self.run) else 0o700)
        self.finish_removals()

    def remove(self, sandbox: SandboxId) -> None:
        """Remove all folders of a sandbox; the one with the mark goes at once and last.  Raises OSError."""
        remove_tree(self.bundle(sandbox))
        self.remove_home(sandbox)

    def verify(self, mark: Mark) -> bool:
        """Whether the sandbox exists, with this mark on its folder and on its container.  NotOurs if with another."""
        found = self.verify_home(mark)
        noted = self._noted(mark.sandbox)
        if noted is not None and noted != mark:
            raise NotOurs(f"the container {mark.sandbox} bears another mark than ours", INSPECT_BY_HAND)
        return found

    def _noted(self, sandbox: SandboxId) -> Mark | None:
        file = self.bundle(sandbox) / "config.json"
        try:
            found = file.stat()
            return _mark_of(file, (found.st_ino, found.st_mtime_ns, found.st_size))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return None  # half written: the runtime has not seen it


@lru_cache(maxsize=MARKS_KEPT_MAX)
def _mark_of(file: Path, _: tuple[int, ...]) -> Mark:
    # Every command asks for it, and most of the file is the list of system calls.
    annotations = json.loads(file.read_bytes())["annotations"]
    return Mark(**{field: annotations[name] for field, name in ANNOTATIONS.items()})
