"""Where the parts of a sandbox go on this machine."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path

from agentlab.backends.oci.bundle import OOM_SCORE, OPEN_FILES_MAX, Place, hosts, resolv_conf
from agentlab.backends.oci.layout import Layout
from agentlab.backends.oci.machine import Machine
from agentlab.backends.oci.runtime import oom_score
from agentlab.backends.oci.stage import Parts, choose
from agentlab.backends.oci.userns import pieces
from agentlab.model.sandbox import SandboxSpec


def place(layout: Layout, machine: Machine, spec: SandboxSpec) -> Place:
    """What the runtime's configuration needs to know of this host."""
    cgroups = machine.cgroups
    return Place(
        stage=machine.runtime.stage,
        uids=machine.uids(spec.slot),
        pieces=pieces(machine.ids, machine.uids(spec.slot)),
        cgroup=layout.cgroup(spec.mark.sandbox) if cgroups.version else None,
        limits=frozenset(cgroups.controllers),
        swap_limit=cgroups.swap,
        cgroup_version=cgroups.version,
        open_files_max=open_files_max(),
        oom_score=oom_score(OOM_SCORE),
    )


def parts(
    layout: Layout, machine: Machine, spec: SandboxSpec, layers: Sequence[Path], *, guest: Path, userns: int | None
) -> Parts:
    """What the sandbox's root is assembled from.  OSError if a layer lies where roots are assembled."""
    stage = machine.runtime.stage
    if choose([layout.state, layout.run, guest, *layers]) != stage:
        raise OSError(16, f"a layer of the template lies below {stage}, where sandboxes are assembled")
    return Parts(
        stage=stage,
        layers=tuple(layers),
        disk=layout.disk(spec.mark.sandbox),
        uids=machine.uids(spec.slot),
        userns=userns,
        nested=machine.nested,
        init=machine.init,
        guest=guest,
        etc={
            "hosts": hosts(spec.hostname),
            "hostname": f"{spec.hostname}\n",
            "resolv.conf": resolv_conf(spec.nameserver),
        },
    )


def open_files_max() -> int:
    """As many as we give, or as we may give: raising the limit beyond our own needs a right that root may lack."""
    return min(OPEN_FILES_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
