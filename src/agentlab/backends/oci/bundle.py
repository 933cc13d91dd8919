"""The runtime's configuration of a sandbox, rendered purely from its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentlab.backends.oci.layout import ANNOTATIONS
from agentlab.backends.oci.seccomp import profile
from agentlab.backends.oci.userns import UidRange
from agentlab.model.sandbox import SandboxSpec

INIT = "/dev/agentlab-init"
SECRETS_DIR = "/run/agentlab"
CONSOLE_DIR = "/run/agentlab/console"
CONSOLE_BYTES_MAX = 1 << 20
GUEST_DIR = "/opt/agentlab"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CPU_PERIOD_US = 100_000
OPEN_FILES_MAX = 65536
# The kernel's out-of-memory killer takes sandboxes before the host's own programs, and in a sandbox its commands (the
# agent, which the guest program puts at 500, first of all) before the first process, with which everything ends.
OOM_SCORE, OOM_SCORE_OF_COMMANDS = 200, 300

# What package managers, git, su and servers need among the ids of the sandbox itself: changing owners and ids, file
# capabilities, signals, low ports, chroot.  Not among them: raw sockets (spoofing), mknod, ptrace beyond one's own
# ids, audit, and above all SYS_ADMIN and NET_ADMIN: the network's addresses are not the guest's to change.
CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    )
)

_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/modules",
    "/proc/vmallocinfo",
    # The host's disks, and which file backs each loop device: that tells the host's paths and other sandboxes' ids.
    "/proc/diskstats",
    "/proc/partitions",
    "/sys/devices/virtual/block",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/sys/kernel",
    "/sys/fs/selinux",
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What the configuration needs to know of the host."""

    stage: str  # where the assembled root and its companions lie in the runtime's mount namespace
    uids: UidRange
    cgroup: str | None  # None: no control groups
    limits: frozenset[str]  # controllers that work: memory, cpu, pids
    swap_limit: bool
    cgroup_version: int
    open_files_max: int = OPEN_FILES_MAX
    oom_score: int = OOM_SCORE
    pieces: tuple[UidRange, ...] = ()  # what `uids` has to be mapped in, one after the other; none: in one


def configuration(spec: SandboxSpec, place: Place) -> dict[str, Any]:
    """The content of `config.json`."""
    mapping = [
        {"containerID": each.first - place.uids.first, "hostID": each.first, "size": each.length}
        for each in place.pieces or (place.uids,)
    ]
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in _namespaces(place)],
        "uidMappings": mapping,
        "gidMappings": mapping,
        "resources": _resources(spec, place),
        "sysctl": _sysctl(),
        "seccomp": profile(nested=spec.nested_sandboxes),
        "rootfsPropagation": "private",
    }
    if place.cgroup is not None:
        linux["cgroupsPath"] = place.cgroup
    # A nested sandbox may mount a /proc of its own only while ours shows everything; the user namespace then is
    # what keeps /proc and /sys from being written.
    if not spec.nested_sandboxes:
        linux |= {"maskedPaths": list(_MASKED), "readonlyPaths": list(_READ_ONLY)}
    environment = {"PATH": PATH, "HOME": "/root"}
    init = process([INIT, "-P"], environment, open_files_max=place.open_files_max)
    return {
        "ociVersion": "1.0.2",
        "process": init | {"oomScoreAdj": place.oom_score},
        "root": {"path": f"{place.stage}/root"},
        "hostname": spec.hostname,
        "mounts": _mounts(spec, place),
        "annotations": {name: getattr(spec.mark, field) for field, name in ANNOTATIONS.items()},
        "linux": linux,
    }


def process(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    cwd: str = "/",
    uid: int = 0,
    gid: int = 0,
    groups: Sequence[int] = (),
    terminal: tuple[int, int] | None = None,
    open_files_max: int = OPEN_FILES_MAX,
) -> dict[str, Any]:
    """The `process` block, for the first process as for every later one; `terminal` is rows and columns."""
    block: dict[str, Any] = {
        "args": list(argv),
        "env": [f"{name}={value}" for name, value in env.items()],
        "cwd": cwd,
        "user": {"uid": uid, "gid": gid, "additionalGids": list(groups)},
        "noNewPrivileges": True,
        "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": open_files_max, "hard": open_files_max},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
        "terminal": terminal is not None,
    }
    if terminal is not None:
        block["consoleSize"] = {"height": terminal[0], "width": terminal[1]}
    return block


def hosts(hostname: str) -> str:
    """The guest's /etc/hosts."""
    return f"127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n"


def resolv_conf(nameserver: str | None) -> str:
    """The guest's /etc/resolv.conf."""
    return f"nameserver {nameserver}\noptions timeout:3 attempts:3\n" if nameserver else ""


def _namespaces(place: Place) -> list[str]:
    kinds = ["pid", "ipc", "uts", "mount", "network", "user"]
    return [*kinds, "cgroup"] if place.cgroup is not None else kinds


def _sysctl() -> dict[str, str]:
    # Link-local addresses would appear by themselves and pass by rules written for IPv4.
    return {"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1"}


def _resources(spec: SandboxSpec, place: Place) -> dict[str, Any]:
    wanted = spec.resources
    limits: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if "memory" in place.limits:
        limits["memory"] = {"limit": wanted.memory_bytes}
        if place.swap_limit:
            limits["memory"]["swap"] = wanted.memory_bytes
    if "cpu" in place.limits:
        limits["cpu"] = {"quota": max(1000, round(wanted.cpus * CPU_PERIOD_US)), "period": CPU_PERIOD_US}
    if "pids" in place.limits:
        limits["pids"] = {"limit": wanted.pids_max}
    return limits


def _mounts(spec: SandboxSpec, place: Place) -> list[dict[str, Any]]:
    quiet = ["nosuid", "noexec", "nodev"]
    half = spec.resources.memory_bytes // 2
    devpts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    mounts = [
        _mount("/proc", "proc", quiet),
        _mount("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount("/dev/pts", "devpts", devpts),
        _mount("/dev/shm", "tmpfs", [*quiet, "mode=1777", f"size={half}"]),
        _mount("/dev/mqueue", "mqueue", quiet),
        _mount("/sys", "sysfs", [*quiet, "ro"]),
        _mount("/run", "tmpfs", ["nosuid", "nodev", "mode=755", f"size={half}"]),
        _mount(SECRETS_DIR, "tmpfs", [*quiet, "mode=0700", f"size={spec.resources.secrets_bytes}"]),
        _bind(f"{place.stage}/console", CONSOLE_DIR, "rw", "noexec"),
        _bind(f"{place.stage}/init", INIT, "ro"),
        _bind(f"{place.stage}/guest", GUEST_DIR, "ro"),
        *(_bind(f"{place.stage}/etc/{name}", f"/etc/{name}", "rw") for name in ("hosts", "hostname", "resolv.conf")),
    ]
    if place.cgroup is not None and place.cgroup_version == 2:
        mounts.insert(6, _mount("/sys/fs/cgroup", "cgroup", [*quiet, "ro"]))
    return mounts


def _mount(destination: str, kind: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": options}


def _bind(source: str, destination: str, *options: str) -> dict[str, Any]:
    # nosuid and nodev are repeated because a user namespace may not drop the flags of what it binds.
    return {
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["bind", "nosuid", "nodev", *options],
    }
