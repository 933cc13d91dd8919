"""What an agent bridge's host holds of it, and what was written down about the time before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path

from agentlab.network.host_network.files import File
from agentlab.network.host_network.spec import MARK, Rule, Spec

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interface of the bridge's name."""

    kind: str  # "bridge", or whatever else it is
    alias: str
    mac: str
    up: bool
    addresses: tuple[str, ...]  # IPv4, with prefix lengths
    ports: tuple[str, ...]

    def is_ours(self, spec: Spec) -> bool:
        """By its alias; or by its MAC, for it has that from the very call that makes it."""
        return self.alias == MARK or self.mac == spec.mac


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Written before anything else changes, so that it can be undone whatever happens."""

    bridge: str
    subnet: IPv4Network
    uplink: str
    before: Mapping[str, str] = field(default_factory=dict)  # kernel settings that outlive the bridge
    directories: tuple[str, ...] = ()  # that we made, outermost first

    def fits(self, spec: Spec) -> bool:
        """Whether it is about the same bridge."""
        return (self.bridge, self.subnet, self.uplink) == (spec.bridge, spec.subnet, spec.uplink)

    def text(self) -> str:
        """As it is kept."""
        value = {
            "version": _VERSION,
            "bridge": self.bridge,
            "subnet": str(self.subnet),
            "uplink": self.uplink,
            "before": dict(self.before),
            "directories": list(self.directories),
        }
        return json.dumps(value, indent=2) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One look.  Of a folder that is no running system, only `files`, `enabled`, `directories` and `record`."""

    files: Mapping[Path, File]  # those of ours that are there, whoever wrote them
    enabled: bool  # whether the unit starts at boot
    directories: frozenset[Path]  # those that are there, of all that hold a file of ours
    record: Record | None
    live: bool = True
    link: Link | None = None
    table: bool = False  # whether any table of ours is there
    rules: bool = False  # whether it reads back as rendered
    routing: frozenset[Rule] = frozenset()
    settings: Mapping[str, str] = field(default_factory=dict)  # those that exist
    forwards_all: bool = False  # whether the host as a whole is a router
    systemd: bool = False
    active: bool = False  # whether systemd takes the unit for started


def parse_record(text: str) -> Record:
    """What `Record.text` wrote.  ValueError if it is anything else."""
    try:
        value = json.loads(text)
        if value["version"] != _VERSION:
            raise ValueError(f"version {value['version']} of it is not known here")
        return Record(
            bridge=str(value["bridge"]),
            subnet=IPv4Network(value["subnet"]),
            uplink=str(value["uplink"]),
            before={str(name): str(old) for name, old in value["before"].items()},
            directories=tuple(str(each) for each in value["directories"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it lacks something: {error}") from error
