"""A sandbox's root and its companions, assembled in a mount namespace that only the runtime will see."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from agentlab.backends.oci.bundle import CONSOLE_BYTES_MAX
from agentlab.backends.oci.loop import attached
from agentlab.backends.oci.syscalls import (
    MS_NOATIME,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    bind,
    bind_layer,
    mount,
)
from agentlab.backends.oci.userns import UidRange

# Folders that exist everywhere, that everyone may enter (the runtime looks at the root with the sandbox's own ids),
# and that are seldom used; the tmpfs over one of them is seen by nobody else.
CANDIDATES = ("/mnt", "/media", "/srv", "/tmp")
LAYERS_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a root is assembled from."""

    stage: str
    layers: Sequence[Path]  # top first
    disk: Path  # an image, or a folder where there are no loop devices
    uids: UidRange
    userns: int | None  # shifts the owners of the layers; None: they are right as they are
    nested: bool  # this process is itself in a user namespace
    init: Path
    guest: Path
    etc: dict[str, str]


def choose(used: Iterable[Path]) -> str:
    """A folder to assemble in that hides none of the paths in use.  OSError if all would."""
    paths = [path.resolve() for path in used]
    for candidate in CANDIDATES:
        if Path(candidate).is_dir() and not any(path.is_relative_to(candidate) for path in paths):
            return candidate
    raise OSError(16, f"none of {', '.join(CANDIDATES)} is free to assemble sandboxes in")


def assemble(parts: Parts) -> None:
    """Mount everything below the stage, in a thread that has private mounts.  Raises OSError naming the step."""
    stage = Path(parts.stage)
    mount("tmpfs", parts.stage, "tmpfs", MS_NOSUID, "mode=755,size=1m")
    for name in ("root", "disk", "console", "guest", "etc"):
        (stage / name).mkdir()
    layers = _layers(parts, stage)
    _disk(parts, stage)
    _overlay(parts, stage, layers)
    _companions(parts, stage)


def _layers(parts: Parts, stage: Path) -> list[str]:
    if not 0 < len(parts.layers) <= LAYERS_MAX:
        raise OSError(22, f"a template has 1 to {LAYERS_MAX} layers, not {len(parts.layers)}")
    points = []
    for number, layer in enumerate(parts.layers):
        point = stage / f"{number}"
        point.mkdir()
        bind_layer(str(layer), str(point), parts.userns)
        points.append(str(point))
    return points


def _disk(parts: Parts, stage: Path) -> None:
    flags = MS_NOSUID | MS_NODEV | MS_NOATIME
    target = str(stage / "disk")
    with ExitStack() as held:
        if parts.disk.is_dir():
            # Not with noatime: in a user namespace that flag is not ours to set on the host's file system.
            bind(str(parts.disk), target, MS_NOSUID | MS_NODEV)
        else:
            node = held.enter_context(attached(parts.disk, stage))
            # The image is sparse, so its inode tables are zero already; writing them would fill it.
            mount(str(node), target, "ext4", flags, "noinit_itable,errors=remount-ro")
    for name in ("upper", "work"):
        folder = stage / "disk" / name
        if not folder.exists():
            folder.mkdir(mode=0o755)
            os.chown(folder, parts.uids.first, parts.uids.first)


def _overlay(parts: Parts, stage: Path, layers: list[str]) -> None:
    disk = stage / "disk"
    # Without redirect_dir, renaming a folder of the template fails with EXDEV, which npm does not expect.
    mode = "userxattr" if parts.nested else "redirect_dir=on"
    options = f"lowerdir={':'.join(layers)},upperdir={disk}/upper,workdir={disk}/work,{mode}"
    mount("overlay", str(stage / "root"), "overlay", MS_NOSUID | MS_NODEV, options)


def _companions(parts: Parts, stage: Path) -> None:
    safe = MS_NOSUID | MS_NODEV
    (stage / "init").touch()
    bind(str(parts.init), str(stage / "init"), safe | MS_RDONLY)
    bind(str(parts.guest), str(stage / "guest"), safe | MS_RDONLY)
    # A file system of the host's own user namespace, so that we can make the file in it, yet small.
    mount("tmpfs", str(stage / "console"), "tmpfs", safe | MS_NOEXEC, f"mode=700,size={CONSOLE_BYTES_MAX},nr_inodes=16")
    os.chown(stage / "console", parts.uids.first, parts.uids.first)
    for name, content in parts.etc.items():
        file = stage / "etc" / name
        file.write_text(content)
        file.chmod(0o644)
        os.chown(file, parts.uids.first, parts.uids.first)
