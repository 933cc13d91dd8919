"""A look at the machine: each thing that VMs need, tried rather than assumed."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from agentlab.backends.cgroup import Cgroups, detect
from agentlab.backends.interface import Unavailable
from agentlab.backends.qemu.command import PROGRAM, WALL
from agentlab.backends.qemu.host import Host
from agentlab.backends.qemu.process import powerless
from agentlab.backends.qemu.tap import DEVICE, open_tap
from agentlab.base.entropy import Entropy
from agentlab.base.process import ProgramFailed, run, which
from agentlab.model.finding import Finding

QEMU_MIN = (7, 0)
KVM = Path("/dev/kvm")
TRIAL_S_MAX = 30
_INSTALL = "apt-get install qemu-system-x86 qemu-utils"
_AS_ROOT = "Run the daemon as root (the shipped service does)."
_QUIT = b'{"execute":"qmp_capabilities"}\n{"execute":"quit"}\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What was found; `host` only if VMs can be made."""

    findings: tuple[Finding, ...]
    host: Host | None


async def look(*, wanted: str, uid: int, entropy: Entropy) -> Looked:
    """Look at everything, and start one empty machine as the user `uid`.  Changes nothing that stays."""
    program, version, found = await _qemu()
    chosen, acceleration = accelerator(wanted, Path("/proc/cpuinfo").read_text())
    cgroups = detect(Path("/proc/self/mountinfo").read_text())
    tap = _taps(entropy)
    findings = [_machine(), _root(), found, _tools(), acceleration, tap, _limits(cgroups)]
    if program is None or any(finding.fatal and not finding.ok for finding in findings):
        return Looked(findings=tuple(findings), host=None)
    trial = await _trial(program, chosen, uid)
    host = Host(
        program=program,
        version=version,
        accelerator=chosen,
        processor=_processor(Path("/proc/cpuinfo").read_text()),
        cgroups=cgroups,
        taps=tap.ok,
    )
    return Looked(findings=(*findings, trial), host=host if trial.ok else None)


def _machine() -> Finding:
    found = platform.machine()
    remedy = "Use the backend oci on this machine."
    return Finding(name="machine", ok=found == "x86_64", detail=found, remedy=remedy)


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding(name="privilege", ok=True, detail="root")
    detail = f"this process runs as uid {os.geteuid()}; taps, control groups and users of VMs need root"
    return Finding(name="privilege", ok=False, detail=detail, remedy=_AS_ROOT)


async def _qemu() -> tuple[str | None, str, Finding]:
    if (program := which(PROGRAM)) is None:
        return None, "", Finding(name="qemu", ok=False, detail=f"{PROGRAM} not found", remedy=_INSTALL)
    try:
        text = (await run([program, "--version"], timeout_s=TRIAL_S_MAX)).out.decode(errors="replace")
    except ProgramFailed as error:
        return None, "", Finding(name="qemu", ok=False, detail=str(error), remedy=_INSTALL)
    version, release = version_in(text)
    ok = release >= QEMU_MIN
    detail = version if ok else f"{version} is older than {'.'.join(map(str, QEMU_MIN))}"
    return program, version, Finding(name="qemu", ok=ok, detail=detail, remedy="Install a newer QEMU.")


def version_in(text: str) -> tuple[str, tuple[int, ...]]:
    """What QEMU says of itself, with its packager's addition, and the release as numbers."""
    if (found := re.search(r"version\s+((\d+)\.(\d+)[^\n]*)", text)) is None:
        return "of unknown version", (0,)
    return found[1].strip(), (int(found[2]), int(found[3]))


def _tools() -> Finding:
    missing = [name for name in ("qemu-img", "setpriv", "unshare") if which(name) is None]
    detail = f"{', '.join(missing)} not found" if missing else "qemu-img, setpriv and unshare"
    return Finding(name="vm tools", ok=not missing, detail=detail, remedy="apt-get install qemu-utils util-linux")


def accelerator(wanted: str, cpuinfo: str, device: Path = KVM) -> tuple[str, Finding]:
    """KVM only where the processor has it and the kernel lets us: a device that merely opens is no proof."""
    able = re.search(r"^flags\s*:.*\b(vmx|svm)\b", cpuinfo, re.M) is not None
    why = _why_no_kvm(device, able=able)
    emulated = Finding(name="accelerator", ok=True, detail="tcg: emulated, about 10 times slower", fatal=False)
    if wanted == "tcg":
        return "tcg", emulated
    if why is None:
        return "kvm", Finding(name="accelerator", ok=True, detail="kvm", fatal=False)
    if wanted == "kvm":
        remedy = "Enable virtualisation in the firmware or the outer VM, or set backends.qemu.accelerator to auto."
        return "kvm", Finding(name="accelerator", ok=False, detail=f"kvm was asked for, but {why}", remedy=remedy)
    detail = f"{emulated.detail}, because {why}"
    return "tcg", Finding(name="accelerator", ok=True, detail=detail, fatal=False)


def _why_no_kvm(device: Path, *, able: bool) -> str | None:
    if not able:
        return "the processor shows neither vmx nor svm"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{device} cannot be opened: {error.strerror}"
    return None


def _processor(cpuinfo: str) -> str:
    """The lines of the first processor that decide what guests may use."""
    wanted = ("vendor_id", "cpu family", "model", "stepping", "microcode", "flags")
    first = cpuinfo.partition("\n\n")[0]
    return "\n".join(line for line in first.splitlines() if line.partition(":")[0].strip() in wanted)


def _taps(entropy: Entropy) -> Finding:
    try:
        os.close(open_tap(f"alp{entropy.word(8)}"))
    except Unavailable as error:
        detail = f"{error.cause}: VMs have no network, only mode `off`"
        return Finding(name="taps", ok=False, detail=detail, remedy=error.remedy, fatal=False)
    return Finding(name="taps", ok=True, detail=DEVICE, fatal=False)


def _limits(cgroups: Cgroups) -> Finding:
    missing = [name for name in ("memory", "cpu") if name not in cgroups.controllers]
    detail = f"no limit of {' and '.join(missing)} for a VM's process" if missing else f"version {cgroups.version}"
    return Finding(name="vm control groups", ok=not missing, detail=detail, remedy=_AS_ROOT, fatal=False)


async def _trial(program: str, accelerator: str, uid: int) -> Finding:
    machine = ("-M", "none", "-accel", accelerator, "-nodefaults", "-display", "none", "-S", "-sandbox", WALL)
    try:
        await run([*powerless(uid), program, *machine, "-qmp", "stdio"], stdin=_QUIT, timeout_s=TRIAL_S_MAX)
    except ProgramFailed as error:
        remedy = "Needed: QEMU with seccomp, and network namespaces."
        return Finding(name="vm trial", ok=False, detail=f"an empty VM could not be started: {error}", remedy=remedy)
    return Finding(name="vm trial", ok=True, detail=f"an empty VM ran as uid {uid}, without rights")


def facts_of(host: Host | None) -> dict[str, str]:
    """What is told beside the findings."""
    return {} if host is None else {"accelerator": host.accelerator, "qemu": host.version.split()[0]}
