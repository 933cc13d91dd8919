"""A throw-away user of this machine, for tests of what works without root."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from agentlab.base.entropy import SystemEntropy
from agentlab.base.files import exclusive_lock, make_directory
from agentlab.testing.daemon_process import SMALL_PROFILE, shared_templates
from agentlab.testing.rootfs import test_cache

SERVE_S_MAX = 60.0
END_S_MAX = 30.0

# What a desktop's udev grants to everyone, made in mounts that only this process and its children see; root's part.
_SCENE = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 scene /dev/net
mknod -m 666 /dev/net/tun c 10 200
if [ -n "$SCENE_RESOLV" ]; then mount --bind "$SCENE_RESOLV" /etc/resolv.conf; fi
for program in $SCENE_HIDDEN; do
  if path=$(command -v "$program"); then mount --bind /dev/null "$(readlink -f "$path")"; fi
done
echo 400 > /proc/self/oom_score_adj  # as some desktops do; no user may go below it again
if [ -n "$SCENE_CLOSED" ]; then
  # The number of user namespaces is limited in each of them: one of our own, that is otherwise the machine's, has none.
  unshare --user --keep-caps sh -c 'until grep -q . /proc/self/gid_map; do sleep 0.01; done
    echo 0 > /proc/sys/user/max_user_namespaces
    exec setpriv --reuid "$SCENE_UID" --regid "$SCENE_UID" --clear-groups --inh-caps=-all -- "$@"' sh "$@" &
  while [ "$(readlink /proc/$!/ns/user)" = "$(readlink /proc/self/ns/user)" ]; do sleep 0.01; done
  for map in uid_map gid_map; do echo 0 0 4294967295 > /proc/$!/$map; done
  wait $!
  exit
fi
id=$SCENE_UID
unset SCENE_RESOLV SCENE_HIDDEN SCENE_CLOSED SCENE_UID
exec setpriv --reuid "$id" --regid "$id" --clear-groups --inh-caps=-all -- "$@"
"""


class RootlessUser:
    """Has a home with a short path, ids to hand out, and a daemon if it starts one.  Leaves nothing behind."""

    def __init__(
        self,
        *,
        network: str = "",
        resolv_conf: str = "",
        subordinates: bool = True,
        hidden: Sequence[str] = (),
        closed: bool = False,
    ) -> None:
        """`network` names a network namespace to live in; `resolv_conf` is what the user reads as the machine's;
        `hidden` names programs that seem not to be installed; `closed`: the kernel refuses user namespaces.
        """
        self.name = f"alr{SystemEntropy().word(6)}"
        self.home = Path()
        self.uid = 0
        self._network, self._resolv_conf, self._subordinates = network, resolv_conf, subordinates
        self._hidden, self._closed = hidden, closed
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.home = Path(tempfile.mkdtemp(prefix="alr-", dir="/tmp"))
        with exclusive_lock(make_directory(test_cache()) / "users.lock", wait=True):
            _as_root("useradd", "--no-create-home", "--home-dir", str(self.home), "--user-group", self.name)
            if not self._subordinates:
                for kind in ("uid", "gid"):
                    for first, count in _granted(kind, self.name):
                        _as_root("usermod", f"--del-sub{kind}s", f"{first}-{first + count - 1}", self.name)
        self.uid = int(_as_root("id", "-u", self.name))
        (self.home / "resolv.conf").write_text(self._resolv_conf)
        for each in ("", "config", "state", "config/profiles"):
            make_directory(self.home / each)
            os.chown(self.home / each, self.uid, self.uid)
        (self.home / "config/profiles/small.yaml").write_text(SMALL_PROFILE)
        self.settings({})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            sys.stderr.write(f"--- daemon log\n{self.log()[-6000:]}\n")
        for pid in self.processes():
            _kill(pid)
        end = time.monotonic() + END_S_MAX
        while self.processes() and time.monotonic() < end:
            time.sleep(0.05)
        with exclusive_lock(test_cache() / "users.lock", wait=True):
            subprocess.run(["userdel", self.name], check=False, capture_output=True)
        shutil.rmtree(self.home, ignore_errors=True)

    def settings(self, more: Mapping[str, object]) -> None:
        """Write the daemon's configuration."""
        usual: dict[str, object] = {
            "limits": {"disk_reserve_bytes": "64MiB"},
            "durations": {"reconcile_interval_s": 1, "link_lost_s": 5, "stop_grace_s": 1},
        }
        file = self.home / "config/agentlabd.yaml"
        file.write_text(yaml.safe_dump(usual | dict(more)))
        file.chmod(0o644)

    def command(self, *argv: str) -> list[str]:
        """A command line that runs `argv` as this user, in its network."""
        # Not `ip netns exec`, which mounts another /sys, without control groups.
        there = ["nsenter", f"--net=/run/netns/{self._network}"] if self._network else []
        return [*there, "unshare", "--mount", "sh", "-c", _SCENE, "sh", *argv]

    def environment(self) -> dict[str, str]:
        """What root's part of `command` needs, and the user's own variables."""
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self.home),
            "AGENTLAB_DIR": str(self.home),
            "PYTHONPATH": ":".join((str(_SOURCES), sysconfig.get_paths()["purelib"])),
            "SCENE_UID": str(self.uid),
            "SCENE_CLOSED": "yes" if self._closed else "",
            "SCENE_HIDDEN": " ".join(self._hidden),
            "SCENE_RESOLV": str(self.home / "resolv.conf") if self._resolv_conf else "",
        }

    def run(self, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program as this user; never raises for its status."""
        return subprocess.run(
            self.command(*argv),
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment(),
            check=False,
            timeout=300,
            cwd="/",
        )

    def words(self, *words: str) -> list[str]:
        """The command line of `agentlab`."""
        return [_python(), "-m", "agentlab.cli.main", *words]

    def second(self) -> subprocess.CompletedProcess[str]:
        """Start another daemon in the same directories, and wait for its end."""
        return self.run(_python(), "-m", "agentlab.daemon.main")

    def send(self, number: int) -> None:
        """Send a signal to the process that was started as the daemon."""
        assert self._daemon is not None
        self._daemon.send_signal(number)

    def agentlab(self, *words: str) -> Any:
        """What `agentlab --json …` prints.  AssertionError with its words if it fails."""
        done = self.run(*self.words("--json", *words))
        assert done.returncode == 0, f"agentlab {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def take_templates(self) -> None:
        """Copy the shared finished build, its owners becoming this user's ids: as if the user had built it."""
        source = shared_templates() / "templates"
        target = self.home / "state/templates"
        self.run("mkdir", str(target))
        give = subprocess.Popen(
            ["tar", "-C", str(source), "--exclude=*.partial", "-c", "layers", "builds"], stdout=subprocess.PIPE
        )
        unpack = ("tar", "-C", str(target), "-x", "--numeric-owner")
        subprocess.run(
            self.command("unshare", "--user", "--map-root-user", "--map-auto", *unpack),
            stdin=give.stdout,
            env=self.environment(),
            check=True,
        )
        assert give.wait() in (0, 1)  # 1: another test was building a layer meanwhile

    def start(self) -> float:
        """Start the daemon and wait until it serves; the seconds that took.  RuntimeError with its log if it ends."""
        began, before = time.monotonic(), len(self.log())
        with (self.home / "daemon.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                self.command(_python(), "-m", "agentlab.daemon.main", "--log-format", "human"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                start_new_session=True,
                cwd="/",
            )
        while time.monotonic() - began < SERVE_S_MAX:
            if self._daemon.poll() is not None:
                raise RuntimeError(f"the daemon ended with {self._daemon.returncode}:\n{self.log()[-3000:]}")
            if " ready " in self.log()[before:]:
                return time.monotonic() - began
            time.sleep(0.01)
        raise RuntimeError(f"the daemon does not serve:\n{self.log()[-3000:]}")

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._daemon is not None
        return self._daemon.pid

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the daemon by a signal; its exit status."""
        assert self._daemon is not None
        self._daemon.send_signal(number)
        return self._daemon.wait(60)

    def log(self) -> str:
        """All that the daemon has written."""
        file = self.home / "daemon.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def processes(self) -> list[int]:
        """Ids of processes that run as this user or as one of its subordinate ids."""
        own = {self.uid}
        spans = [range(first, first + count) for first, count in _granted("uid", self.name)]
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    # Not the owner of the folder: that is root for a program that hides its memory, as pasta does.
                    lines = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines())
                    uid, state = int(lines["Uid"].split()[0]), lines["State"][0]
                except OSError:
                    continue
                if state not in "ZX" and (uid in own or any(uid in span for span in spans)):
                    found.append(int(folder.name))
        return found


_SOURCES = Path(__file__).resolve().parents[2]


def _python() -> str:
    """An interpreter that every user may run; ours may lie in root's home."""
    named = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (sys.executable, f"/usr/local/bin/{named}", f"/usr/bin/{named}"):
        real = Path(path).resolve()
        if real.exists() and all(each.stat().st_mode & 0o001 for each in (real, *real.parents)):
            return str(real) if path != sys.executable else path
    raise RuntimeError(f"no {named} that every user may run: apt-get install {named}")


def _granted(kind: str, user: str) -> list[tuple[int, int]]:
    lines = (line.split(":") for line in Path(f"/etc/sub{kind}").read_text().splitlines())
    return [(int(line[1]), int(line[2])) for line in lines if line[0] == user]


def _as_root(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
