"""Build steps run away from the host: own mounts, processes, names and IPC; the host's network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentlab.base.clock import sleep
from agentlab.base.process import ProgramFailed, run
from agentlab.base.tasks import TaskScope
from agentlab.base.text import one_line, printable
from agentlab.base.units import format_seconds

TAIL_BYTES = 4000
TICK_S = 1.0
MOUNT_OPTIONS_BYTES_MAX = 4095  # of mount(2): one page with its NUL

# Everything that administers the machine rather than files: a step's root may not reach out of its directory.
_DROPPED = (
    "sys_admin",
    "sys_module",
    "sys_rawio",
    "sys_boot",
    "sys_time",
    "sys_ptrace",
    "sys_pacct",
    "sys_tty_config",
    "net_admin",
    "mac_admin",
    "mac_override",
    "mknod",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_control",
    "audit_read",
    "linux_immutable",
    "dac_read_search",
)

# Runs before a step: builds its root from layers, then enters it for good.  All mounts live in this namespace alone
# and vanish with its last process, however that ends: nothing is ever mounted where the host could delete through it.
_ENTER = r"""
set -eu
hostname template-build
cd "$BUILD_LAYERS"
mount -t overlay overlay -o "$BUILD_OVERLAY" "$BUILD_ROOT"
cd "$BUILD_ROOT"
mount -t proc proc proc
mount -t tmpfs -o mode=0755 build-dev dev
for node in null zero full random urandom tty; do : > dev/$node; mount --bind /dev/$node dev/$node; done
mkdir dev/pts dev/shm
mount -t tmpfs -o mode=1777 build-shm dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 build-pts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
mount -t tmpfs -o mode=0755 build-run run
mount -t tmpfs -o mode=1777 build-tmp tmp
mkdir -m 1777 run/lock
mount -t tmpfs -o mode=0755 build-lists var/lib/apt/lists
mount -t tmpfs -o mode=0755 build-archives var/cache/apt/archives
mkdir var/lib/apt/lists/partial var/cache/apt/archives/partial
while IFS='|' read -r source target; do
  [ -n "$source" ] || continue
  case "$target" in run/*)
    mkdir -p "${target%/*}"
    if [ -d "$source" ]; then mkdir -p "$target"; else : > "$target"; fi;;
  esac
  mount --bind "$source" "$target"
done <<< "$BUILD_BINDS"
step=$BUILD_STEP drop=$BUILD_DROP
unset BUILD_LAYERS BUILD_OVERLAY BUILD_ROOT BUILD_BINDS BUILD_STEP BUILD_DROP OLDPWD
pivot_root . mnt
umount -l /mnt
cd /
exec setpriv --bounding-set "$drop" --inh-caps=-all bash -euo pipefail -c "$step"
"""


class StepFailed(Exception):
    """A step ended badly.  `cause` is the end of what it printed, on one line; `timed_out` if its limit was reached."""

    def __init__(self, cause: str, *, timed_out: bool = False) -> None:
        super().__init__(cause)
        self.cause, self.timed_out = cause, timed_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Chamber:
    """Where a step runs: on `lowers` (top first, names below `layers`), writing into `scratch`/fs."""

    layers: Path
    lowers: tuple[str, ...]
    scratch: Path  # a directory below `layers`, with fs/, work/ and root/ in it
    binds: tuple[tuple[Path, str], ...] = ()  # what of the host it sees; targets relative to its root
    env: Mapping[str, str] = field(default_factory=dict)

    def environment(self, script: str) -> dict[str, str]:
        """What the entering program reads: where everything lies, and the step itself."""
        name = self.scratch.name
        # Relative names: short, and without characters of the host's path that the option string would misread.
        overlay = f"lowerdir={':'.join(self.lowers)},upperdir={name}/fs,workdir={name}/work"
        if in_user_namespace():
            overlay += ",userxattr"
        assert len(overlay) <= MOUNT_OPTIONS_BYTES_MAX, "EXTENDS_DEPTH_MAX and the steps of a recipe keep this short"
        return {
            **self.env,
            "BUILD_LAYERS": str(self.layers),
            "BUILD_OVERLAY": overlay,
            "BUILD_ROOT": str(self.scratch / "root"),
            "BUILD_BINDS": "\n".join(f"{source}|{target}" for source, target in self.binds),
            "BUILD_STEP": script,
            "BUILD_DROP": ",".join(f"-{name}" for name in _DROPPED),
        }


def namespaces() -> list[str]:
    """The beginning of a command line that runs the rest in namespaces of its own, ending with this process.

    Without root there is also a user namespace, in which the caller's subordinate ids stand for root and the others.
    """
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user", "--map-auto"]
    apart = ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=SIGKILL", "--propagation", "private"]
    return ["setpriv", "--pdeathsig", "KILL", "unshare", *user, *apart]


def in_user_namespace() -> bool:
    """Whether our root is not the machine's: its overlays then keep their marks in `user.*` attributes."""
    return os.geteuid() != 0 or Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


async def run_in(chamber: Chamber, script: str, log: Path, timeout_s: float, on_line: Callable[[str], None]) -> None:
    """Run a bash script as root of the chamber; all that it changes lands in the chamber's fs/.

    `on_line` gets the newest line of output about once a second.  Raises StepFailed.  On cancellation every
    process of the step is killed before this returns.
    """
    await run_logged([*namespaces(), "bash", "-c", _ENTER], chamber.environment(script), log, timeout_s, on_line)


async def run_logged(
    argv: Sequence[str], env: Mapping[str, str], log: Path, timeout_s: float, on_line: Callable[[str], None]
) -> None:
    """Run a program with its output appended to `log`.  Raises StepFailed with the end of it; see `run_in`."""
    shell = ["bash", "-c", 'exec "${@:2}" >>"$1" 2>&1', "bash", str(log), *argv]
    async with TaskScope("template-step") as scope:
        scope.start(_watch(log, on_line), "watch")
        try:
            await run(shell, env=env, timeout_s=timeout_s)
        except ProgramFailed as error:
            if error.status is None:
                limit = f"the limit step_s_max = {format_seconds(timeout_s)} was reached; last: {tail(log)}"
                raise StepFailed(limit, timed_out=True) from error
            raise StepFailed(tail(log) or str(error)) from error


async def _watch(log: Path, on_line: Callable[[str], None]) -> None:
    shown = ""
    while True:
        await sleep(TICK_S)
        line = tail(log, lines=1)
        if line and line != shown:
            shown = line
            on_line(line)


def tail(log: Path, lines: int = 6) -> str:
    """The last lines of a log as one printable line; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
    found = [line for line in printable(text.replace("\r", "\n")).splitlines() if line.strip()]
    return one_line(" / ".join(line.strip() for line in found[-lines:]), 800)
