"""(Spec, observed) → the steps that make the bridge or take it away; none if all is as it should be.  Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agentlab.network.host_network import files, rules
from agentlab.network.host_network.files import File
from agentlab.network.host_network.spec import MARK, Spec, routing
from agentlab.network.host_network.state import Link, Observed, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Put a file in its place, with the folders above it."""

    path: Path
    file: File

    def __str__(self) -> str:
        return f"write {self.path} (mode {self.file.mode:04o})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enable:
    """Let systemd start the unit at boot."""

    def __str__(self) -> str:
        return f"link {files.ENABLED} to {files.UNIT}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Take a file or a link away, or a folder that is empty."""

    path: Path

    def __str__(self) -> str:
        return f"remove {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """Give a kernel setting its value, now."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"set net/{self.name} = {self.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Run a program."""

    argv: tuple[str, ...]
    stdin: str = ""

    def __str__(self) -> str:
        return f"run {shlex.join(self.argv)}{' with the rules' if self.stdin else ''}"


Step = Write | Enable | Remove | Set | Run


def set_up(spec: Spec, observed: Observed) -> list[Step]:
    """First what is needed to undo it, then the rules; the bridge comes up last, when they stand."""
    kept = _kept(spec, observed)
    wanted: Mapping[Path, File] = {files.RECORD: File(content=kept.text()), **files.render(spec)}
    changed = [path for path, file in wanted.items() if observed.files.get(path) != file]
    steps: list[Step] = [Write(path=path, file=wanted[path]) for path in changed]
    if not observed.enabled:
        steps.append(Enable())
    if not observed.live:
        return steps
    if observed.systemd and {files.UNIT, files.DROP_IN} & set(changed):
        steps.append(_run("systemctl daemon-reload"))
    if not observed.rules:
        steps.append(Run(argv=("nft", "-f", "-"), stdin=rules.render(spec)))
    steps += _bridge(spec, observed)
    if observed.systemd and not observed.active:
        steps.append(_run(f"systemctl start {files.UNIT_NAME}"))
    return steps


def undo(spec: Spec, observed: Observed) -> list[Step]:
    """The bridge goes first, then its rules, then what would bring them back.  Only what is ours, and what is there."""
    steps: list[Step] = []
    if observed.live:
        steps += _undo_live(spec, observed)
    present = [path for path in reversed(files.FILES) if path in observed.files and is_ours(observed, path)]
    if observed.enabled:
        steps.append(Remove(path=files.ENABLED))
    steps += [Remove(path=path) for path in present]
    if observed.live and observed.systemd and {files.UNIT, files.DROP_IN} & set(present):
        steps.append(_run("systemctl daemon-reload"))
    if observed.record is not None:
        steps.append(Remove(path=files.RECORD))
        steps += [Remove(path=Path(each)) for each in reversed(observed.record.directories)]
    return steps


def is_ours(observed: Observed, path: Path) -> bool:
    """Whether the file that lies at one of our paths was written by us."""
    return files.is_ours(observed.files[path].content)


def _kept(spec: Spec, observed: Observed) -> Record:
    """The record of the first time, if there is one: what is found now may be our own doing."""
    if observed.record is not None:
        return replace(observed.record, bridge=spec.bridge, subnet=spec.subnet, uplink=spec.uplink)
    parents = {parent for path in (*files.FILES, files.RECORD, files.ENABLED) for parent in path.parents}
    missing = sorted(parents - observed.directories, key=lambda each: (len(each.parts), each))
    uplink = f"ipv4/conf/{spec.uplink}/forwarding"
    before = {uplink: observed.settings[uplink]} if uplink in observed.settings else {}
    return Record(
        bridge=spec.bridge,
        subnet=spec.subnet,
        uplink=spec.uplink,
        before=before,
        directories=tuple(str(each) for each in missing),
    )


def _bridge(spec: Spec, observed: Observed) -> list[Step]:
    link, name = observed.link, spec.bridge
    steps: list[Step] = []
    if link is None:
        steps.append(_run(f"ip link add {name} address {spec.mac} type bridge stp_state 0 forward_delay 0"))
        link = Link(kind="bridge", alias="", mac=spec.mac, up=False, addresses=(), ports=())
    if link.alias != MARK:
        steps.append(Run(argv=("ip", "link", "set", "dev", name, "alias", MARK)))
    # A bridge that we have yet to make has none of its settings; those that this kernel does not know stay unset.
    wanted = files.settings(spec)
    steps += [
        Set(name=setting, value=value)
        for setting, value in wanted.items()
        if observed.settings.get(setting, value if observed.link is not None else None) != value
    ]
    if link.mac != spec.mac:
        steps.append(_run(f"ip link set dev {name} address {spec.mac}"))
    steps += [_run(f"ip addr del {each} dev {name}") for each in link.addresses if each != spec.address]
    if spec.address not in link.addresses:
        steps.append(_run(f"ip addr add {spec.address} dev {name}"))
    steps += [Run(argv=("ip", "rule", "add", *each.words)) for each in routing(spec) if each not in observed.routing]
    if not link.up:
        steps.append(_run(f"ip link set dev {name} up"))
    return steps


def _undo_live(spec: Spec, observed: Observed) -> Iterable[Step]:
    if observed.link is not None and observed.link.is_ours(spec):
        yield _run(f"ip link del {spec.bridge}")
    for rule in sorted(observed.routing, key=lambda each: each.priority):
        yield Run(argv=("ip", "rule", "del", *rule.words))
    if observed.systemd and observed.active:
        yield _run(f"systemctl stop {files.UNIT_NAME}")
    if observed.table:
        yield Run(argv=("nft", "-f", "-"), stdin=rules.remove())
    if observed.record is not None and not observed.forwards_all:
        for name, value in observed.record.before.items():
            if observed.settings.get(name, value) != value:
                yield Set(name=name, value=value)


def _run(words: str) -> Run:
    return Run(argv=tuple(words.split()))
