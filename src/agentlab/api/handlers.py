"""Which handler answers which row.  Dispatch refuses to start if one is missing or left over."""

from __future__ import annotations

from collections.abc import Mapping

from agentlab.api.call import Handler
from agentlab.api.control import attach, blobs, daemon, events, jobs, profiles, results, sandboxes, snapshots, templates


def handlers() -> Mapping[str, Handler]:
    """By the row's name."""
    return {
        "sandboxes.create": sandboxes.create,
        "sandboxes.list": sandboxes.page,
        "sandboxes.get": sandboxes.get,
        "sandboxes.steps": sandboxes.steps,
        "sandboxes.destroy": sandboxes.destroy,
        "sandboxes.stop": sandboxes.stop,
        "sandboxes.start": sandboxes.start,
        "sandboxes.pause": sandboxes.pause,
        "sandboxes.resume": sandboxes.resume,
        "sandboxes.renew": sandboxes.renew,
        "sandboxes.snapshot": snapshots.take,
        "sandboxes.snapshots": snapshots.page,
        "sandboxes.snapshot_remove": snapshots.remove,
        "sandboxes.restore": snapshots.restore,
        "sandboxes.fork": snapshots.fork,
        "sandboxes.execute": sandboxes.execute,
        "sandboxes.attach": attach.attach,
        "sandboxes.console": sandboxes.console,
        "jobs.create": jobs.create,
        "jobs.list": jobs.page,
        "jobs.get": jobs.get,
        "jobs.steps": jobs.steps,
        "jobs.cancel": jobs.cancel,
        "jobs.output": results.output,
        "jobs.follow": jobs.follow,
        "jobs.artifacts": results.artifacts,
        "jobs.artifact": results.artifact,
        "jobs.patch": results.patch,
        "jobs.bundle": results.bundle,
        "blobs.put": blobs.put,
        "blobs.head": blobs.head,
        "templates.list": templates.page,
        "templates.get": templates.get,
        "templates.build": templates.build,
        "templates.remove": templates.remove,
        "profiles.list": profiles.page,
        "profiles.get": profiles.get,
        "profiles.validate": profiles.validate,
        "agents.list": profiles.agents,
        "events.list": events.page,
        "events.follow": events.follow,
        "daemon.status": daemon.status,
        "daemon.doctor": daemon.doctor,
        "daemon.reload": daemon.reload,
        "daemon.metrics": daemon.metrics,
        "daemon.openapi": daemon.openapi,
        "daemon.whoami": daemon.whoami,
    }
