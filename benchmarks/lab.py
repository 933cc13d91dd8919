"""A daemon of one's own to measure, and what it measures beside: the runtime alone, with the very same bundle."""

from __future__ import annotations

import compileall
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import ROOT

from agentlab.base.clock import SystemClock
from agentlab.client.sync import Connection
from agentlab.model.ids import Digest
from agentlab.templates.build import TemplateBuilder
from agentlab.testing.daemon_process import DaemonProcess


def need_root() -> None:
    """End quietly, with the reason, where real sandboxes cannot be made."""
    if os.geteuid() != 0:
        sys.stderr.write(f"{sys.argv[0]}: skipped: needs root: real sandboxes, mounts and network links\n")
        sys.exit(0)


def compiled() -> dict[str, str]:
    """The environment of an installed program: its bytecode is there, as the installer leaves it."""
    compileall.compile_dir(str(ROOT / "src"), quiet=2)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return dict(os.environ)


@contextmanager
def folder() -> Iterator[Path]:
    """A directory with a short path, because a Unix socket's has at most 107 bytes; removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="al-", dir="/var/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def running_daemon(**settings: object) -> Iterator[DaemonProcess]:
    """A daemon with the settings that users have, but for its subnet."""
    compiled()
    with folder() as where, DaemonProcess(where, settings={"durations": {}, **settings}) as daemon:
        yield daemon


def run(argv: list[str]) -> None:
    """A program to its end; its errors are shown where it fails.  What it leaves running may keep its streams."""
    with tempfile.TemporaryFile() as errors:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, check=False)
        if done.returncode:
            errors.seek(0)
            raise RuntimeError(f"{argv}: {errors.read().decode(errors='replace')}")


def configuration_of(daemon: DaemonProcess, sandbox: str) -> dict[str, Any]:
    """The OCI configuration of a sandbox that the daemon made."""
    file = daemon.directory / "run" / "oci" / "sandboxes" / sandbox / "config.json"
    found: dict[str, Any] = json.loads(file.read_bytes())
    return found


def template_layers(daemon: DaemonProcess, digest: str) -> tuple[Path, ...]:
    """The layers of a template that the daemon has, top first."""
    builder = TemplateBuilder(daemon.directory / "state", daemon.directory / "cache", SystemClock())
    return builder.layers_of(Digest(digest))


def sandbox_gone(client: Connection, sandbox: str) -> None:
    """Destroy it and wait until it is seen to be gone."""
    client.call("sandboxes.destroy", sandbox=sandbox)
    end = time.monotonic() + 60
    while client.call("sandboxes.get", sandbox=sandbox)["state"] != "destroyed":
        assert time.monotonic() < end, f"{sandbox} is not destroyed"
        time.sleep(0.005)


def resident_bytes_of(pid: int) -> int:
    """The memory that another process holds now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_s_of(pid: int) -> float:
    """The processor time that another process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
