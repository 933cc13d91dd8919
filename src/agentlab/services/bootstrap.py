"""What a guest is given when it redeems its grant."""

from __future__ import annotations

import json
from typing import Any

from agentlab.model.agents import AGENTS
from agentlab.model.artifact import ARTIFACTS_MAX
from agentlab.model.ids import Digest
from agentlab.model.job import Job
from agentlab.model.profile import ArtifactLimits
from agentlab.model.sandbox import Sandbox
from agentlab.secrets.seal import Seal
from agentlab.store.blobs import Blobs

REDACTED_LENGTH_MIN = 6  # shorter values, such as 1 or true, would black out half of the output
HEARTBEAT_S = 5.0


def seal_env(seal: Seal, plain: dict[str, str], secret: dict[str, str]) -> bytes:
    """A job's environment for the wait in the queue; values in `secret` are redacted from all output later."""
    return seal.seal(json.dumps({"plain": plain, "secret": secret}).encode())


def branch_of(job: str) -> str:
    """The branch that a job's work is brought back on."""
    return f"agentlab/{job}"


def bootstrap(
    job: Job,
    sandbox: Sandbox,
    *,
    rescue: bool,
    sealed_env: bytes | None,
    seal: Seal,
    blobs: Blobs,
    limits: ArtifactLimits,
    stop_grace_s: float,
    collect_s_max: float,
) -> bytes:
    """The JSON of docs/internals/guest-link.md.  A rescue gets no environment: it runs nothing."""
    agent = AGENTS[job.agent]
    env: dict[str, str] = dict(agent.env)
    redact: list[str] = []
    if sealed_env is not None and not rescue:
        opened = json.loads(seal.unseal(sealed_env))
        env |= opened["plain"] | opened["secret"]
        redact = [value for value in opened["secret"].values() if len(value) >= REDACTED_LENGTH_MIN]
    content: dict[str, Any] = {
        "job": job.id,
        "mode": "collect" if rescue else "run",
        "agent": {"name": agent.name, "argv": list(agent.argv), "prompt": agent.prompt.value},
        "task": job.task,
        "repo": _repo(job, blobs),
        "env": env,
        "redact": redact,
        "user": sandbox.user,
        "work_dir": "/work",
        "branch": branch_of(job.id),
        "git_name": "AgentLab",
        "git_email": "agentlab@localhost",
        "timeout_s": job.timeout_s,
        "stop_grace_s": stop_grace_s,
        "collect_s_max": collect_s_max,
        "heartbeat_s": HEARTBEAT_S,
        "globs": list(job.artifact_globs),
        "file_bytes_max": limits.file_bytes_max,
        "total_bytes_max": limits.total_bytes_max,
        "count_max": ARTIFACTS_MAX,
    }
    return json.dumps(content).encode()


def _repo(job: Job, blobs: Blobs) -> dict[str, Any]:
    bundle: Digest | None = job.repo.bundle
    size = blobs.size(bundle) if bundle is not None else 0
    return {"url": job.repo.url, "bundle": bundle, "bundle_bytes": size, "ref": job.repo.ref}
