"""A look at the machine: each thing that the backend needs, tried rather than assumed."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from agentlab.backends.cgroup import Cgroups, detect
from agentlab.backends.interface import BackendError
from agentlab.backends.oci import loop
from agentlab.backends.oci.bundle import configuration
from agentlab.backends.oci.disk import blank
from agentlab.backends.oci.layout import Layout
from agentlab.backends.oci.machine import Machine, Outbound
from agentlab.backends.oci.placement import parts, place
from agentlab.backends.oci.runtime import KNOWN, Runtime
from agentlab.backends.oci.stage import assemble, choose
from agentlab.backends.oci.userns import UserNamespaces, in_user_namespace, mapped_ids
from agentlab.base.entropy import Entropy
from agentlab.base.files import make_directory, remove_tree
from agentlab.base.process import ProgramFailed, run, which
from agentlab.model.finding import Finding
from agentlab.model.ids import Digest, InstallationId, SandboxId
from agentlab.model.network import NetworkMode
from agentlab.model.resources import DISK_BYTES_MIN, MEMORY_BYTES_MIN, Resources
from agentlab.model.sandbox import Mark, SandboxSpec

INITS = ("catatonit", "tini")
_ROOTLESS_REMEDY = "Run the daemon as root (the shipped service does), where control groups, loop devices and ids are."


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What was found; `machine` only if sandboxes can be made."""

    findings: tuple[Finding, ...]
    machine: Machine | None


async def look(
    layout: Layout,
    *,
    wanted: str | None,
    uid_first: int,
    guest: Path,
    entropy: Entropy,
    userns: UserNamespaces,
    outbound: Outbound | None = None,
) -> Looked:
    """Look at everything, then make and remove one container with it all.  Changes nothing that stays."""
    cgroups = detect(Path("/proc/self/mountinfo").read_text())
    stage = choose([layout.state, layout.run, guest])
    runtimes, runtime_finding = await _runtimes(layout, wanted, cgroups, stage)
    init, init_finding = _init()
    findings = [_root(), runtime_finding, init_finding, _formatter(), _loops(), *_limits(cgroups), _ids(uid_first)]
    if any(finding.fatal and not finding.ok for finding in findings) or init is None:
        return Looked(findings=tuple(findings), machine=None)
    loops = all(finding.ok for finding in findings if finding.name in ("loop devices", "mkfs.ext4"))
    trials: list[Finding] = []
    for runtime in runtimes:
        machine = Machine(
            runtime=runtime,
            init=init,
            cgroups=cgroups,
            loops=loops,
            nested=in_user_namespace(),
            ids=mapped_ids(),
            uid_first=uid_first,
            outbound=outbound,
        )
        trials.append(await _trial(layout, machine, entropy, userns))
        if trials[-1].ok:
            return Looked(findings=(*findings, trials[-1]), machine=machine)
    # Every runtime's failure: the first one is the one that people expect to work.
    detail = "; ".join(each.detail for each in trials)
    return Looked(findings=(*findings, replace(trials[0], detail=detail)), machine=None)


def _root() -> Finding:
    if os.geteuid() == 0:
        where = "root inside a user namespace" if in_user_namespace() else "root"
        return Finding(name="privilege", ok=True, detail=where)
    detail = f"this process runs as uid {os.geteuid()}; mounts, ids and namespaces of sandboxes need root"
    return Finding(name="privilege", ok=False, detail=detail, remedy=_ROOTLESS_REMEDY)


async def _runtimes(layout: Layout, wanted: str | None, cgroups: Cgroups, stage: str) -> tuple[list[Runtime], Finding]:
    names = [wanted] if wanted else ["crun", "runc"]
    found, details = [], []
    programs = {name: program for name in names if name in KNOWN and (program := which(name)) is not None}
    asking = (run([program, "--version"], timeout_s=20) for program in programs.values())
    answers = await asyncio.gather(*asking, return_exceptions=True)
    for (name, program), answer in zip(programs.items(), answers, strict=True):
        if isinstance(answer, ProgramFailed):
            details.append(str(answer))
            continue
        if isinstance(answer, BaseException):
            raise answer
        details.append(f"{name} {_version(answer.out.decode(errors='replace'))}")
        usable = cgroups.version != 0
        hidden = cgroups.hybrid if name == "crun" else None
        found.append(
            Runtime(program=program, name=name, root=layout.runtime_root, hidden=hidden, cgroups=usable, stage=stage)
        )
    if found:
        return found, Finding(name="runtime", ok=True, detail=", ".join(details))
    detail = f"{' and '.join(names)} not found" if not details else "; ".join(details)
    return [], Finding(name="runtime", ok=False, detail=detail, remedy=f"apt-get install {wanted or 'crun'}")


def _init() -> tuple[Path | None, Finding]:
    for name in INITS:
        if (path := which(name)) is not None:
            return Path(path), Finding(name="first process", ok=True, detail=path)
    detail = f"neither {' nor '.join(INITS)} found; a sandbox needs a first process that reaps the others"
    return None, Finding(name="first process", ok=False, detail=detail, remedy="apt-get install catatonit")


def _formatter() -> Finding:
    if all(which(name) for name in ("mkfs.ext4", "e2fsck")):
        return Finding(name="mkfs.ext4", ok=True, detail="mkfs.ext4 and e2fsck", fatal=False)
    remedy = "apt-get install e2fsprogs"
    return Finding(name="mkfs.ext4", ok=False, detail="not found: no disk limit", remedy=remedy, fatal=False)


def _loops() -> Finding:
    if os.access(loop.CONTROL, os.R_OK | os.W_OK):
        return Finding(name="loop devices", ok=True, detail=str(loop.CONTROL), fatal=False)
    detail = f"{loop.CONTROL} cannot be opened: no disk limit"
    remedy = _ROOTLESS_REMEDY if in_user_namespace() else "modprobe loop"
    return Finding(name="loop devices", ok=False, detail=detail, remedy=remedy, fatal=False)


def _limits(cgroups: Cgroups) -> Iterable[Finding]:
    kind = {0: "none that can be written", 1: "version 1", 2: "version 2"}[cgroups.version]
    if cgroups.hybrid is not None and cgroups.version == 1:
        kind += " with version 2 beside it"
    missing = [name for name in ("memory", "cpu", "pids") if name not in cgroups.controllers]
    detail = kind if not missing else f"{kind}; without {', '.join(missing)}"
    yield Finding(
        name="control groups",
        ok=not missing,
        detail=detail,
        remedy="Run as root on a host whose /sys/fs/cgroup is writable, with these controllers enabled."
        * bool(missing),
        fatal=False,
    )


def _ids(uid_first: int) -> Finding:
    ranges = mapped_ids()
    if in_user_namespace():
        detail = f"only {sum(length for _, length in ranges)} ids exist here: all sandboxes share them"
        return Finding(name="user ids", ok=False, detail=detail, remedy=_ROOTLESS_REMEDY, fatal=False)
    return Finding(name="user ids", ok=True, detail=f"own ranges from {uid_first}", fatal=False)


async def _trial(layout: Layout, machine: Machine, entropy: Entropy, userns: UserNamespaces) -> Finding:
    """Make a container from an empty template in the very way that sandboxes are made, and remove it."""
    name = SandboxId(f"sb-{entropy.word(8)}")
    folder = layout.run / f"probe-{name}"
    installation = InstallationId(name.removeprefix("sb-"))  # a parent group of its own, to be removed with it
    own = replace(layout, installation=installation, state=folder / "state", run=folder / "run")
    runtime = replace(machine.runtime, root=own.runtime_root)
    machine = replace(machine, runtime=runtime)
    try:
        own.prepare()
        layer = _empty_template(folder / "template")
        spec = _trial_spec(own, name)
        bundle = make_directory(own.bundle(name), 0o700)
        await _make(own, machine, spec, layer, userns)
        detail = f"{runtime.name} made and removed a container"
        return Finding(name="trial", ok=bundle.exists(), detail=detail)
    except (BackendError, OSError, ProgramFailed, ValueError) as error:
        detail = f"{runtime.name} could not make a container: {error}"
        remedy = "Needed: root, overlayfs and id-mapped mounts (Linux 5.19), user namespaces, crun or runc."
        if machine.nested:
            remedy = (
                "Needed in a user namespace: overlayfs there (Linux 5.11), a state directory on a local file system "
                "such as ext4, xfs or btrfs that is not mounted noexec, and /proc and /sys of which nothing is hidden."
            )
        return Finding(name="trial", ok=False, detail=detail, remedy=remedy)
    finally:
        await asyncio.shield(_unmake(own, machine, name, folder))


async def _make(own: Layout, machine: Machine, spec: SandboxSpec, layer: Path, userns: UserNamespaces) -> None:
    name = spec.mark.sandbox
    make_directory(own.home(name))
    if machine.loops:
        (await blank(own.blanks, spec.resources.disk_bytes)).rename(own.disk(name))
    else:
        make_directory(own.disk(name))
    where = place(own, machine, spec)
    (own.bundle(name) / "config.json").write_text(json.dumps(configuration(spec, where)))
    borrowed = await userns.borrow(where.uids) if machine.own_ranges else None
    try:
        together = parts(own, machine, spec, [layer], guest=layer, userns=borrowed)
        await machine.runtime.create(name, own.bundle(name), lambda: assemble(together))
    finally:
        if borrowed is not None:
            os.close(borrowed)


async def _unmake(own: Layout, machine: Machine, name: SandboxId, folder: Path) -> None:
    try:
        await machine.runtime.delete(name)
        await machine.cgroups.remove(own.cgroup(name))
        machine.cgroups.remove_if_empty(own.cgroup_parent)
        remove_tree(folder)
    except (BackendError, OSError):
        return  # the trial's own failure says more


def _empty_template(folder: Path) -> Path:
    for name in ("proc", "sys", "dev", "run", "etc", "opt/agentlab"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    return folder


def _trial_spec(layout: Layout, name: SandboxId) -> SandboxSpec:
    return SandboxSpec(
        mark=Mark(installation=layout.installation, sandbox=name, nonce="probe"),
        name="probe",
        template="none",
        template_digest=Digest("0" * 64),
        slot=0,
        resources=Resources(memory_bytes=MEMORY_BYTES_MIN, disk_bytes=DISK_BYTES_MIN),
        network=NetworkMode.OFF,
        port=None,
        hostname="probe",
        nameserver=None,
    )


def _version(text: str) -> str:
    found = re.search(r"version\s+(\S+)", text)
    return found[1] if found else "of unknown version"
