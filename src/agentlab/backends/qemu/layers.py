"""The layers of a sandbox's disk: what it stands on, the lowest first, as names in its own folder.

A layer is never written again.  Each who stands on it has a name of its own for it, so it lives exactly as long as it
is needed, whoever goes first, and nobody counts.  What stands on the disk is the whole truth.
"""

from __future__ import annotations

import os
from pathlib import Path

from agentlab.backends.qemu import disk

DISK = "disk.qcow2"
NEXT = ".disk.qcow2.next"
LAYERS_MAX = 24  # that one disk stands on: each is one more place to look for a block
_BELOW = "below{}.qcow2"


def below(home: Path) -> tuple[Path, ...]:
    """What the disk in this folder stands on."""
    found: list[Path] = []
    while (each := home / _BELOW.format(len(found))).exists():
        found.append(each)
    if found and (home / DISK).exists() and found[-1].samefile(home / DISK):
        found.pop()  # a crash came between the two steps of `push`
    return tuple(found)


def push(home: Path) -> None:
    """Let the disk become the highest layer, under the empty one that lies ready as NEXT.  Raises OSError.

    To be done before a VM that runs is told: until it obeys, it writes to what is then a layer, and since nothing was
    written above that, disk and layers stay true at every moment.
    """
    target = home / _BELOW.format(len(below(home)))
    target.unlink(missing_ok=True)
    os.link(home / DISK, target)
    (home / NEXT).replace(home / DISK)


async def lay_next(home: Path, bytes_count: int, uid: int, *, name: str = NEXT) -> Path:
    """Make the empty disk that shall stand on all others.  Raises OSError, ProgramFailed."""
    target = home / name
    target.unlink(missing_ok=True)
    # The name of the highest layer is the same in each folder that has it: whoever looks by hand finds all of them.
    under = Path(_BELOW.format(len(below(home))))
    await disk.overlay(target, under, bytes_count, exists=False)
    disk.give(target, uid)
    return target


def keep_lowest(home: Path) -> None:
    """Forget all layers but the lowest: the disk has what was in them.  May be cut short anywhere.  Raises OSError."""
    for each in reversed(below(home)[1:]):
        each.unlink()


def seal(layer: Path) -> None:
    """Let every VM's process read it that is handed it, and none write it.  Raises OSError."""
    if not layer.is_symlink():
        os.chown(layer, 0, 0)
        layer.chmod(0o444)


def share(layers: tuple[Path, ...], folder: Path) -> None:
    """Let the disk in `folder` stand on these.  Raises OSError."""
    wipe(folder)
    for number, each in enumerate(layers):
        disk.share(each, folder / _BELOW.format(number))


def wipe(folder: Path) -> None:
    """Forget what the disk in this folder stood on.  Raises OSError."""
    for each in folder.glob(_BELOW.format("*")):
        each.unlink()
