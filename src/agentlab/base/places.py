"""Where AgentLab keeps its files on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DIRECTORY_VARIABLE = "AGENTLAB_DIR"
SOCKET_NAME = "agentlabd.sock"
SETTINGS_NAME = "agentlabd.yaml"
SOCKET_PATH_BYTES_MAX = 107  # sun_path of Linux, without its final NUL


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The four directories of one installation.  None of them need exist."""

    config: Path
    state: Path
    cache: Path
    run: Path

    @property
    def socket(self) -> Path:
        """The daemon's socket, unless a setting says otherwise."""
        return self.run / SOCKET_NAME


def places(environ: Mapping[str, str], uid: int, directory: Path | None = None) -> Places:
    """All below `directory` or $AGENTLAB_DIR if one is given; else the system's folders for root, XDG's for others.

    As the XDG specification says, a relative path in one of its variables is ignored.
    Raises ValueError if there is nothing to go by: no HOME.
    """
    if directory is None and environ.get(DIRECTORY_VARIABLE):
        directory = Path(environ[DIRECTORY_VARIABLE])
    if directory is not None:
        root = directory.absolute()
        return Places(config=root / "config", state=root / "state", cache=root / "cache", run=root / "run")
    if uid == 0:
        return Places(
            config=Path("/etc/agentlab"),
            state=Path("/var/lib/agentlab"),
            cache=Path("/var/cache/agentlab"),
            run=Path("/run/agentlab"),
        )
    state = _xdg(environ, "XDG_STATE_HOME", ".local/state")
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    return Places(
        config=_xdg(environ, "XDG_CONFIG_HOME", ".config"),
        state=state,
        cache=_xdg(environ, "XDG_CACHE_HOME", ".cache"),
        # Without a login session there is no runtime directory; the state directory is ours alone as well.
        run=Path(runtime) / "agentlab" if runtime.startswith("/") else state / "run",
    )


def _xdg(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    value = environ.get(variable, "")
    if value.startswith("/"):
        return Path(value) / "agentlab"
    home = environ.get("HOME", "")
    if not home.startswith("/"):
        raise ValueError(f"neither HOME nor {variable} names a directory; give one with --dir or {DIRECTORY_VARIABLE}")
    return Path(home) / below_home / "agentlab"
