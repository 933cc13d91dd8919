"""The system calls for mounts and safe paths that Python's library does not offer."""

from __future__ import annotations

import ctypes
import os

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_NOATIME, MS_BIND, MS_REC, MS_SLAVE = 1 << 10, 1 << 12, 1 << 14, 1 << 19

RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT = 0x02, 0x04, 0x10

_CLONE_NEWNS = 0x00020000
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = 1, os.O_CLOEXEC, 4
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_IDMAP = 0x1, 0x2, 0x4, 0x00100000
_NR_OPEN_TREE, _NR_MOVE_MOUNT, _NR_OPENAT2, _NR_MOUNT_SETATTR = 428, 429, 437, 442  # the same on every architecture

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


class _OpenHow(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


def unshare_mounts() -> None:
    """Give the calling thread a mount table of its own; what the host unmounts later goes away here too.

    The thread's children inherit it, and it vanishes with the last of them.  Raises OSError.
    """
    _checked(_libc.unshare(_CLONE_NEWNS), "a private mount namespace")
    mount(None, "/", None, MS_REC | MS_SLAVE)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2).  Raises OSError that names the target."""
    arguments = (_text(source), _text(target), _text(kind), ctypes.c_ulong(flags), _text(options or None))
    _checked(_libc.mount(*arguments), f"mounting {kind or source or 'propagation'} at {target}")


def bind(source: str, target: str, flags: int) -> None:
    """Bind `source` at `target` with `flags`, and what its own mount forbids.  Raises OSError."""
    mount(source, target, None, MS_BIND)
    # In a user namespace what the host's mount forbids may not be allowed again, and leaving it out would be that.
    forbidden = os.statvfs(target).f_flag & (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount(None, target, None, MS_BIND | MS_REMOUNT | forbidden | flags)


def bind_layer(source: str, target: str, userns: int | None) -> None:
    """Bind a directory read-only at `target`, its owners shifted by the user namespace `userns` if there is one.

    Raises OSError: EINVAL or EPERM where the file system cannot be id-mapped.
    """
    tree = _checked(
        _libc.syscall(_NR_OPEN_TREE, _AT_FDCWD, _text(source), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC), f"open {source}"
    )
    try:
        attributes = _MountAttributes(_ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0, 0, 0)
        if userns is not None:
            attributes.set |= _ATTR_IDMAP
            attributes.userns = userns
        size = ctypes.sizeof(attributes)
        reference = ctypes.byref(attributes)
        _checked(
            _libc.syscall(_NR_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, reference, size),
            f"an id-mapped mount of {source}",
        )
        _checked(
            _libc.syscall(_NR_MOVE_MOUNT, tree, b"", _AT_FDCWD, _text(target), _MOVE_MOUNT_F_EMPTY_PATH),
            f"attaching {source}",
        )
    finally:
        os.close(tree)


def open_inside(root: int, path: str, flags: int, resolve: int = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS) -> int:
    """Open `path` as if the directory `root` were `/`: no link in it leads out.  Raises OSError."""
    how = _OpenHow(flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK, 0o600 if flags & os.O_CREAT else 0, resolve)
    return _checked(
        _libc.syscall(_NR_OPENAT2, root, _text(path), ctypes.byref(how), ctypes.sizeof(how)), f"opening {path} inside"
    )


def _text(value: str | None) -> bytes | None:
    return None if value is None else os.fsencode(value)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
