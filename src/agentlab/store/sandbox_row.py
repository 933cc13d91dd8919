"""A sandbox as a row of its table, and back."""

from __future__ import annotations

from typing import Any

from agentlab.base.clock import milliseconds
from agentlab.model.ids import Digest, InstallationId, JobId, SandboxId, is_digest, is_id
from agentlab.model.lease import Lease
from agentlab.model.machine import SandboxState
from agentlab.model.network import NetworkMode
from agentlab.model.resources import Resources
from agentlab.model.sandbox import Mark, Sandbox, SnapshotOf, Wish
from agentlab.store import rows

COLUMNS = """id, name, owner, backend, profile, template, template_digest, wish, state, installation, nonce, slot,
  memory_bytes, cpus, pids_max, disk_bytes, secrets_bytes, network, lease_until_ms, created_ms, user, job, keepalive,
  failure, ready_ms, ended_ms, ended_reason, missing_guarantees, lease_warned_s, nested_sandboxes,
  source_sandbox, source_nonce, source_snapshot, restore_to"""


def values(sandbox: Sandbox) -> dict[str, Any]:
    """The sandbox's columns by name.  Asserts what must hold of every row."""
    assert is_id(sandbox.id), f"{sandbox.id!r} is not an id"
    assert sandbox.mark.sandbox == sandbox.id, f"{sandbox.id!r} bears another's mark"
    assert is_digest(sandbox.template_digest), f"{sandbox.template_digest!r} is not a digest"
    source = sandbox.source
    assert source is None or source.mark.installation == sandbox.mark.installation, "a fork of another installation's"
    return {
        "id": sandbox.id,
        "name": sandbox.name,
        "owner": sandbox.owner,
        "backend": sandbox.backend,
        "profile": sandbox.profile,
        "template": sandbox.template,
        "template_digest": sandbox.template_digest,
        "wish": sandbox.wish.value,
        "state": sandbox.state.value,
        "installation": sandbox.mark.installation,
        "nonce": sandbox.mark.nonce,
        "slot": sandbox.slot,
        "memory_bytes": sandbox.resources.memory_bytes,
        "cpus": float(sandbox.resources.cpus),
        "pids_max": sandbox.resources.pids_max,
        "disk_bytes": sandbox.resources.disk_bytes,
        "secrets_bytes": sandbox.resources.secrets_bytes,
        "network": sandbox.network.value,
        "lease_until_ms": milliseconds(sandbox.lease.until),
        "created_ms": milliseconds(sandbox.created_at),
        "user": sandbox.user,
        "job": sandbox.job,
        "keepalive": int(sandbox.keepalive),
        "failure": rows.failure_json(sandbox.failure),
        "ready_ms": rows.ms_or_none(sandbox.ready_at),
        "ended_ms": rows.ms_or_none(sandbox.ended_at),
        "ended_reason": sandbox.ended_reason,
        "missing_guarantees": rows.texts_json(sandbox.missing_guarantees),
        "lease_warned_s": sandbox.lease_warned_s,
        "nested_sandboxes": int(sandbox.nested_sandboxes),
        "source_sandbox": None if source is None else source.mark.sandbox,
        "source_nonce": None if source is None else source.mark.nonce,
        "source_snapshot": None if source is None else source.name,
        "restore_to": sandbox.restore_to,
    }


def sandbox(row: tuple[Any, ...]) -> Sandbox:
    """The inverse, from a row of COLUMNS in their order.  A value that the model does not know raises."""
    id, name, owner, backend, profile, template, template_digest, wish, state, installation, nonce, slot = row[:12]
    memory_bytes, cpus, pids_max, disk_bytes, secrets_bytes, network, lease_until_ms, created_ms = row[12:20]
    user, job, keepalive, failure, ready_ms, ended_ms, ended_reason, missing_guarantees = row[20:28]
    lease_warned_s, nested_sandboxes, *source, restore_to = row[28:]
    assert is_id(id), f"row of {id!r} is damaged"
    assert is_digest(template_digest), f"row of {id!r} is damaged"
    return Sandbox(
        id=SandboxId(id),
        name=name,
        owner=owner,
        backend=backend,
        profile=profile,
        template=template,
        template_digest=Digest(template_digest),
        wish=Wish(wish),
        state=SandboxState(state),
        mark=Mark(installation=InstallationId(installation), sandbox=SandboxId(id), nonce=nonce),
        slot=slot,
        resources=Resources(
            memory_bytes=memory_bytes, cpus=cpus, pids_max=pids_max, disk_bytes=disk_bytes, secrets_bytes=secrets_bytes
        ),
        network=NetworkMode(network),
        lease=Lease(until=rows.instant(lease_until_ms)),
        created_at=rows.instant(created_ms),
        user=user,
        job=None if job is None else JobId(job),
        keepalive=bool(keepalive),
        failure=rows.failure(failure),
        ready_at=rows.instant_or_none(ready_ms),
        ended_at=rows.instant_or_none(ended_ms),
        ended_reason=ended_reason,
        missing_guarantees=rows.texts(missing_guarantees),
        lease_warned_s=lease_warned_s,
        nested_sandboxes=bool(nested_sandboxes),
        source=_source(InstallationId(installation), *source),
        restore_to=restore_to,
    )


def _source(
    installation: InstallationId, sandbox: str | None, nonce: str | None, name: str | None
) -> SnapshotOf | None:
    if sandbox is None:
        return None
    assert nonce is not None, f"row of a fork of {sandbox!r} is damaged"
    assert name is not None, f"row of a fork of {sandbox!r} is damaged"
    return SnapshotOf(mark=Mark(installation=installation, sandbox=SandboxId(sandbox), nonce=nonce), name=name)
