"""How a profile is written in YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from agentlab.base.text import did_you_mean
from agentlab.base.units import format_seconds
from agentlab.base.yaml import Bytes, Document, Flag, Located, Number, Seconds, StrictModel, Whole
from agentlab.errors import HostMountRefused
from agentlab.model.agents import AGENTS
from agentlab.model.ids import NAME_LENGTH_MAX, is_name
from agentlab.model.job import ENV_BYTES_MAX, ENV_COUNT_MAX, GLOBS_MAX, TIMEOUT_S_MAX
from agentlab.model.lease import LEASE_TTL_S_MAX
from agentlab.model.network import NetworkMode
from agentlab.model.profile import ArtifactLimits, Profile
from agentlab.model.resources import DISK_BYTES_MIN, MEMORY_BYTES_MIN, Resources

MOUNT_KEYS = frozenset(("mounts", "mount", "volumes", "volume", "host_mounts", "host_mount", "binds", "bind_mounts"))
TTL_S_MIN = 60
TIMEOUT_S_MIN = 10
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError(
            f"{value!r} is not a name: lower-case letters, digits and hyphens, at most {NAME_LENGTH_MAX}, "
            "not beginning with sb- or job-"
        )
    return value


def _agent(value: str) -> str:
    if value not in AGENTS:
        raise ValueError(f"there is no agent {value!r}.{did_you_mean(value, AGENTS)}")
    return value


def _user(value: str) -> str:
    if not _USER.fullmatch(value):
        raise ValueError(f"{value!r} is not a user name")
    return value


def _env(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not _ENV_NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name an environment variable")
        if "\0" in text:
            raise ValueError(f"{name}: a NUL character cannot stand in an environment variable")
    if len(value) > ENV_COUNT_MAX:
        raise ValueError(f"more variables than ENV_COUNT_MAX = {ENV_COUNT_MAX}")
    if sum(len(name) + len(text.encode()) for name, text in value.items()) > ENV_BYTES_MAX:
        raise ValueError(f"larger than ENV_BYTES_MAX = {ENV_BYTES_MAX} bytes")
    return value


def _globs(value: tuple[str, ...]) -> tuple[str, ...]:
    for glob in value:
        if not glob or glob.startswith("/") or ".." in glob.split("/") or "\0" in glob:
            raise ValueError(f"{glob!r} is not a pattern below the work tree: relative, without `..`")
    if len(value) > GLOBS_MAX:
        raise ValueError(f"more patterns than GLOBS_MAX = {GLOBS_MAX}")
    return value


def _between(low: float, high: float) -> Any:
    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"must be between {format_seconds(low)} and {format_seconds(high)}")
        return value

    return AfterValidator(check)


Name = Annotated[str, AfterValidator(_name)]


class _Resources(StrictModel):
    memory: Bytes = Field(default=Resources().memory_bytes, ge=MEMORY_BYTES_MIN)
    cpus: Number = Field(default=Resources().cpus, gt=0, le=1024)
    pids: Whole = Field(default=Resources().pids_max, ge=16, le=4_194_304)
    disk: Bytes = Field(default=Resources().disk_bytes, ge=DISK_BYTES_MIN)


class _Network(StrictModel):
    mode: NetworkMode = NetworkMode.NAT


class _Lease(StrictModel):
    ttl: Annotated[Seconds, _between(TTL_S_MIN, LEASE_TTL_S_MAX)] = 4 * 3600


class _Job(StrictModel):
    timeout: Annotated[Seconds, _between(TIMEOUT_S_MIN, TIMEOUT_S_MAX)] = 2 * 3600
    keepalive: Flag = False


class _Artifacts(StrictModel):
    globs: Annotated[tuple[str, ...], AfterValidator(_globs)] = ()
    file_max: Bytes = Field(default=ArtifactLimits().file_bytes_max, ge=0)
    total_max: Bytes = Field(default=ArtifactLimits().total_bytes_max, ge=0)


class ProfileFile(StrictModel):
    """One document of a profile file.  Only `name` is needed."""

    name: Name
    description: str = Field(default="", max_length=500)
    template: Name = "base"
    backend: Name | None = None
    agent: Annotated[str, AfterValidator(_agent)] = "shell"
    user: Annotated[str, AfterValidator(_user)] = "root"
    resources: _Resources = _Resources()
    network: _Network = _Network()
    lease: _Lease = _Lease()
    job: _Job = _Job()
    env: Annotated[dict[str, str], AfterValidator(_env)] = {}
    artifacts: _Artifacts = _Artifacts()
    nested_sandboxes: Flag = False


def to_profile(document: Located[ProfileFile]) -> Profile:
    """The profile that a checked document describes."""
    file = document.value
    return Profile(
        name=file.name,
        description=file.description,
        template=file.template,
        backend=file.backend,
        agent=file.agent,
        user=file.user,
        resources=Resources(
            memory_bytes=file.resources.memory,
            cpus=file.resources.cpus,
            pids_max=file.resources.pids,
            disk_bytes=file.resources.disk,
        ),
        network=file.network.mode,
        ttl_s=file.lease.ttl,
        timeout_s=file.job.timeout,
        keepalive=file.job.keepalive,
        nested_sandboxes=file.nested_sandboxes,
        env=tuple(file.env.items()),
        artifacts=ArtifactLimits(
            globs=file.artifacts.globs,
            file_bytes_max=file.artifacts.file_max,
            total_bytes_max=file.artifacts.total_max,
        ),
        source=document.place,
    )


def refuse_host_mounts(documents: list[Document]) -> None:
    """Raise HostMountRefused if a folder of the host is asked for anywhere; `env` may name its variables freely."""
    for document in documents:
        for path, place in document.keys.items():
            key = str(path[-1]).lower().replace("-", "_")
            if key in MOUNT_KEYS and path[0] != "env":
                asked = next(_texts(document, path), key)
                raise HostMountRefused(where=f"{place}: {key}", path=asked)


def _texts(document: Document, path: tuple[str | int, ...]) -> Iterator[str]:
    return (text for each, text in document.raw.items() if each[: len(path)] == path and text)
