"""Images of disks, changed by QEMU's own program while no guest runs on them."""

from __future__ import annotations

from pathlib import Path

from agentlab.base.process import run

IMAGE_S_MAX = 600.0


async def made(path: Path, kind: str, size_bytes: int) -> None:
    """An empty image."""
    await _qemu_img("create", "-q", "-f", kind, str(path), str(size_bytes))


async def linked(base: Path, path: Path) -> None:
    """A qcow2 image upon another."""
    await _qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(path))


async def copied(source: Path, source_kind: str, path: Path, kind: str) -> None:
    """An independent image with the same contents; one that exists is replaced."""
    await _qemu_img("convert", "-q", "-f", source_kind, "-O", kind, str(source), str(path))


async def grown(path: Path, kind: str, size_bytes: int) -> None:
    """A larger image."""
    await _qemu_img("resize", "-q", "-f", kind, str(path), str(size_bytes))


async def kept(path: Path, name: str) -> None:
    """A snapshot inside it."""
    await _qemu_img("snapshot", "-q", "-c", name, str(path))


async def returned(path: Path, name: str) -> None:
    """As it was in a snapshot."""
    await _qemu_img("snapshot", "-q", "-a", name, str(path))


async def dropped(path: Path, name: str) -> None:
    """Without a snapshot."""
    await _qemu_img("snapshot", "-q", "-d", name, str(path))


async def _qemu_img(*arguments: str) -> None:
    await run(["qemu-img", *arguments], timeout_s=IMAGE_S_MAX)
