"""Carries out the steps of an agent bridge, one after the other."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path

from agentlab.base import process
from agentlab.base.files import write_atomic
from agentlab.network import sysctl
from agentlab.network.host_network import files
from agentlab.network.host_network.look import below
from agentlab.network.host_network.plan import Enable, Remove, Run, Set, Step, Write

STEP_TIMEOUT_S = 60.0
DIRECTORY_MODE = 0o755


class StepFailed(Exception):
    """A step could not be carried out; those before it were."""

    def __init__(self, step: Step, cause: str) -> None:
        super().__init__(f"{step}: {cause}")
        self.step, self.cause = step, cause


async def carry_out(steps: Iterable[Step], root: Path, told: Callable[[Step], None]) -> None:
    """All steps, each told before it begins.  StepFailed at the first that fails; they may be planned again then."""
    for step in steps:
        told(step)
        try:
            await _carry_out(step, root)
        except (OSError, process.ProgramFailed) as failure:
            raise StepFailed(step, str(failure)) from failure


async def _carry_out(step: Step, root: Path) -> None:
    match step:
        case Write():
            place = below(root, step.path)
            _make_folder(place.parent)
            write_atomic(place, step.file.content.encode(), step.file.mode)
        case Enable():
            place = below(root, files.ENABLED)
            _make_folder(place.parent)
            place.symlink_to(files.UNIT)
        case Remove():
            _remove(below(root, step.path))
        case Set():
            sysctl.write(step.name, step.value)
        case Run():
            program = process.which(step.argv[0]) or step.argv[0]
            await process.run((program, *step.argv[1:]), stdin=step.stdin.encode(), timeout_s=STEP_TIMEOUT_S)


def _make_folder(path: Path) -> None:
    """With those above it, readable by everybody whatever the umask: other programs' folders are among them."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir()
        path.chmod(DIRECTORY_MODE)


def _remove(path: Path) -> None:
    """A folder that has come to hold something else stays."""
    try:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
