"""A job as a row of its table, and back."""

from __future__ import annotations

import json
from typing import Any

from agentlab.base.clock import milliseconds
from agentlab.model.ids import Digest, JobId, SandboxId, is_digest, is_id
from agentlab.model.job import Job, JobResult, RepoSource
from agentlab.model.machine import JobState
from agentlab.store import rows

COLUMNS = """id, owner, state, profile, agent, repo_url, repo_bundle, repo_ref, repo_origin, env_names, artifact_globs,
  timeout_ms, ttl_ms, keepalive, queued_ms, sandbox, phase, started_ms, running_ms, collecting_ms, ended_ms,
  stop_reason, stop_ms, result, failure, output_bytes, rescues, backend"""


def values(job: Job) -> dict[str, Any]:
    """The job's columns by name, the task excepted.  Asserts what must hold of every row."""
    assert is_id(job.id), f"{job.id!r} is not an id"
    assert job.repo.url is None or job.repo.bundle is None, f"{job.id} has two sources"
    assert job.repo.bundle is None or is_digest(job.repo.bundle), f"{job.repo.bundle!r} is not a digest"
    return {
        "id": job.id,
        "owner": job.owner,
        "state": job.state.value,
        "profile": job.profile,
        "agent": job.agent,
        "repo_url": job.repo.url,
        "repo_bundle": job.repo.bundle,
        "repo_ref": job.repo.ref,
        "repo_origin": job.repo.origin,
        "env_names": rows.texts_json(job.env_names),
        "artifact_globs": rows.texts_json(job.artifact_globs),
        "timeout_ms": milliseconds(job.timeout_s),
        "ttl_ms": milliseconds(job.ttl_s),
        "keepalive": int(job.keepalive),
        "queued_ms": milliseconds(job.queued_at),
        "sandbox": job.sandbox,
        "phase": job.phase,
        "started_ms": rows.ms_or_none(job.started_at),
        "running_ms": rows.ms_or_none(job.running_at),
        "collecting_ms": rows.ms_or_none(job.collecting_at),
        "ended_ms": rows.ms_or_none(job.ended_at),
        "stop_reason": job.stop_reason,
        "stop_ms": rows.ms_or_none(job.stop_at),
        "result": _result_json(job.result),
        "failure": rows.failure_json(job.failure),
        "output_bytes": job.output_bytes,
        "rescues": job.rescues,
        "backend": job.backend,
    }


def job(row: tuple[Any, ...]) -> Job:
    """The inverse, from a row of COLUMNS in their order with the task at its end."""
    id, owner, state, profile, agent, repo_url, repo_bundle, repo_ref, repo_origin, env_names, artifact_globs = row[:11]
    timeout_ms, ttl_ms, keepalive, queued_ms, sandbox, phase, started_ms, running_ms, collecting_ms = row[11:20]
    ended_ms, stop_reason, stop_ms, result, failure, output_bytes, rescues, backend, task = row[20:]
    assert is_id(id), f"row of {id!r} is damaged"
    return Job(
        id=JobId(id),
        owner=owner,
        state=JobState(state),
        profile=profile,
        agent=agent,
        task=task,
        repo=RepoSource(
            url=repo_url, bundle=None if repo_bundle is None else Digest(repo_bundle), ref=repo_ref, origin=repo_origin
        ),
        env_names=rows.texts(env_names),
        artifact_globs=rows.texts(artifact_globs),
        timeout_s=rows.instant(timeout_ms),
        ttl_s=rows.instant(ttl_ms),
        keepalive=bool(keepalive),
        queued_at=rows.instant(queued_ms),
        sandbox=None if sandbox is None else SandboxId(sandbox),
        phase=phase,
        started_at=rows.instant_or_none(started_ms),
        running_at=rows.instant_or_none(running_ms),
        collecting_at=rows.instant_or_none(collecting_ms),
        ended_at=rows.instant_or_none(ended_ms),
        stop_reason=stop_reason,
        stop_at=rows.instant_or_none(stop_ms),
        result=_result(result),
        failure=rows.failure(failure),
        output_bytes=output_bytes,
        rescues=rescues,
        backend=backend,
    )


def _result_json(result: JobResult | None) -> str | None:
    if result is None:
        return None
    return json.dumps(
        {
            "outcome": result.outcome,
            "exit_status": result.exit_status,
            "summary": result.summary,
            "base_commit": result.base_commit,
            "head_commit": result.head_commit,
            "files_changed": result.files_changed,
            "lines_added": result.lines_added,
            "lines_removed": result.lines_removed,
            "skipped": result.skipped,
        }
    )


def _result(column: str | None) -> JobResult | None:
    if column is None:
        return None
    found = json.loads(column)
    return JobResult(**{**found, "skipped": tuple(found["skipped"])})
