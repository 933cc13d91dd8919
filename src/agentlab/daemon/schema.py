"""What can be set: every setting with its default, bounds and description.  The reference is made from here."""

from __future__ import annotations

import re
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from agentlab.base.yaml import Bytes, Flag, Seconds, StrictModel, Whole
from agentlab.daemon.cluster_schema import ProxmoxSettings

SUBNET_DEFAULT = IPv4Network("10.77.0.0/16")
_PRIVATE = tuple(IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))


def _absolute(value: object) -> object:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError(f"{value!r} is not an absolute path")
    return Path(value)


def _network(value: object) -> object:
    if value is None or isinstance(value, IPv4Network):
        return value
    try:
        return IPv4Network(str(value))
    except ValueError as error:
        raise ValueError(f"{error}; write for example {SUBNET_DEFAULT}") from error


def _usable_subnet(subnet: IPv4Network | None) -> IPv4Network | None:
    if subnet is not None and not any(subnet.subnet_of(private) for private in _PRIVATE):
        raise ValueError(f"{subnet} is not in a private range (10/8, 172.16/12, 192.168/16)")
    if subnet is not None and not 12 <= subnet.prefixlen <= 24:
        raise ValueError(f"{subnet} must have a prefix length from 12 to 24: sandboxes need addresses")
    return subnet


def _mirror(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"(?:https?://|file:/|copy:/)\S+", value):
        raise ValueError(f"{value!r} is not the address of a Debian mirror: http, https, file or copy")
    return value


def _at_least_a_moment(value: float) -> float:
    if value <= 0:
        raise ValueError("must be longer than nothing")
    return value


AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]
Subnet = Annotated[IPv4Network | None, BeforeValidator(_network), AfterValidator(_usable_subnet)]
Mirror = Annotated[str | None, AfterValidator(_mirror)]
Duration = Annotated[Seconds, AfterValidator(_at_least_a_moment)]


class LogSettings(StrictModel):
    """What the daemon writes about itself."""

    format: Literal["auto", "json", "human"] = Field(
        default="auto", description="`json` lines, `human` lines, or `auto`: human on a terminal, JSON otherwise."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severity written."
    )


class OciSettings(StrictModel):
    """Containers."""

    enabled: Flag = Field(default=True, description="Whether this daemon makes containers.")

    runtime: Literal["auto", "crun", "runc", "runsc"] = Field(
        default="auto", description="The OCI runtime; `auto` takes crun, else runc."
    )
    uid_first: Whole = Field(
        default=1_879_048_192,
        ge=65536,
        le=4_000_000_000,
        description="The first of the host's user ids that sandboxes are mapped to; each sandbox gets 65536 of them. "
        "Nothing else on the host may use ids from here on.",
    )


class QemuSettings(StrictModel):
    """Virtual machines."""

    enabled: Flag = Field(default=True, description="Whether this daemon makes virtual machines on its own machine.")

    accelerator: Literal["auto", "kvm", "tcg"] = Field(
        default="auto",
        description="`kvm` (the processor's own virtualisation), `tcg` (emulation, about ten times slower), or `auto`: "
        "KVM where it truly works, else emulation.  `agentlab status` says which it is.",
    )
    restore: bool = Field(
        default=True,
        description="Start a VM from the memory of one that was booted before, which takes less than a second.  "
        "`false`: boot every VM anew.",
    )
    spares: Whole = Field(
        default=0,
        ge=0,
        le=1,
        description="VMs held ready for the next sandbox of the kind last asked for.  Each holds about 150 MiB.",
    )
    uid_first: Whole = Field(
        default=1_879_048_192,
        ge=65536,
        le=4_000_000_000,
        description="The first of the host's user ids that VMs run as, 65536 apart: the same range as "
        "`backends.oci.uid_first`, since no sandbox has another's place in it.",
    )


class BackendSettings(StrictModel):
    """What makes sandboxes."""

    oci: OciSettings = Field(default=OciSettings(), description="Containers on this machine.")
    qemu: QemuSettings = Field(default=QemuSettings(), description="Virtual machines on this machine.")
    proxmox: ProxmoxSettings = Field(default=ProxmoxSettings(), description="VMs on a Proxmox VE cluster.")


class NetworkSettings(StrictModel):
    """The network of the sandboxes."""

    subnet: Subnet = Field(
        default=None,
        description="The private subnet of all sandboxes, such as 10.77.0.0/16.  Unset: that one, or another if it "
        "clashes with a route of this machine.  Set: exactly this one, and a clash is an error.",
    )


class TemplateSettings(StrictModel):
    """How templates are built."""

    mirror: Mirror = Field(
        default=None,
        description="The Debian mirror for the packages of templates.  Unset: this machine's own apt sources.",
    )
    step_s_max: Duration = Field(default=3600, description="How long one step of a build may take.")
    lists_fresh_s: Duration = Field(
        default=86400, description="How old the cached package lists may be before they are fetched again."
    )


class Limits(StrictModel):
    """Reaching one is an error that names it."""

    disk_reserve_bytes: Bytes = Field(
        default=1 << 30,
        ge=0,
        description="Free space on the state directory's file system below which no work is accepted.",
    )
    sandboxes_max: Whole = Field(default=200, ge=1, le=4000, description="Sandboxes that may exist at the same time.")
    snapshots_max: Whole = Field(default=16, ge=1, le=256, description="Snapshots that one sandbox may have.")
    forks_max: Whole = Field(default=16, ge=1, le=256, description="Sandboxes that one request may fork.")
    jobs_running_max: Whole = Field(
        default=4, ge=1, le=1000, description="Jobs that may run at the same time; others queue."
    )
    jobs_queued_max: Whole = Field(default=10_000, ge=1, description="Jobs that may wait in the queue.")
    output_bytes_max: Bytes = Field(
        default=256 << 20, ge=1 << 20, description="Output kept of one job; what comes beyond is counted, not kept."
    )


class Durations(StrictModel):
    """Waits and how long things are kept.  Each accepts `90s`, `15m`, `1h30m` or a number of seconds."""

    reconcile_interval_s: Duration = Field(
        default=5, le=3600, description="How often the world is observed without a cause."
    )
    link_lost_s: Duration = Field(default=30, description="Silence after which a guest link counts as lost.")
    harvest_s_max: Duration = Field(default=900, description="How long tear-down waits for the work of an ended job.")
    stop_grace_s: Duration = Field(default=10, description="How long a sandbox may take to stop by itself.")
    drain_s_max: Duration = Field(
        default=30, description="How long requests may go on once the daemon is asked to stop."
    )
    kept_s: Duration = Field(
        default=30 * 86400,
        description="How long ended jobs, destroyed sandboxes and their events and artifacts are kept.",
    )


class Settings(StrictModel):
    """All of them.  Directories and the socket are always absolute here, whatever the file says or leaves out."""

    config_dir: AbsolutePath = Field(description="Where profiles, recipes and this file lie: `/etc/agentlab` for root.")
    state_dir: AbsolutePath = Field(description="Database, artifacts, templates: `/var/lib/agentlab` for root.")
    cache_dir: AbsolutePath = Field(description="What can be fetched again: `/var/cache/agentlab` for root.")
    run_dir: AbsolutePath = Field(description="Socket and lock: `/run/agentlab` for root.")
    socket: AbsolutePath = Field(description="The daemon's Unix socket, mode 0660; `agentlabd.sock` in `run_dir`.")
    socket_group: str | None = Field(
        default=None,
        min_length=1,
        description="The group that may use the socket.  Unset: the daemon's own user and group.",
    )
    profile_dirs: tuple[AbsolutePath, ...] = Field(
        description="Folders of profiles beside the shipped ones; a later folder overrides an earlier one. "
        "`profiles` in `config_dir` if unset."
    )
    template_dirs: tuple[AbsolutePath, ...] = Field(
        description="Folders of recipes beside the shipped ones; a later folder overrides an earlier one. "
        "`templates` in `config_dir` if unset."
    )
    default_backend: Literal["oci", "qemu", "proxmox"] = Field(
        default="oci", description="The backend of profiles that name none."
    )
    backends: BackendSettings = Field(default=BackendSettings(), description="Settings of each backend.")
    network: NetworkSettings = Field(default=NetworkSettings(), description="The network of the sandboxes.")
    templates: TemplateSettings = Field(default=TemplateSettings(), description="How templates are built.")
    log: LogSettings = Field(default=LogSettings(), description="What the daemon writes about itself.")
    limits: Limits = Field(default=Limits(), description="Limits.")
    durations: Durations = Field(default=Durations(), description="Waits and retention.")
    _source: str = PrivateAttr("defaults")

    @model_validator(mode="after")
    def _has_default(self) -> Self:
        backends = self.backends
        used = {"oci": backends.oci.enabled, "qemu": backends.qemu.enabled, "proxmox": backends.proxmox.used}
        if not used[self.default_backend]:
            how = "give backends.proxmox.endpoints" if self.default_backend == "proxmox" else "enable it"
            raise ValueError(f"default_backend: {self.default_backend} is not used by this daemon; {how}")
        return self

    @property
    def source(self) -> str:
        """The file that was read, or `defaults`."""
        return self._source
