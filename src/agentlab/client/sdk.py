"""`agentlab.Client` and `agentlab.AsyncClient`: the API with typed answers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from agentlab.client import async_methods, methods
from agentlab.client.aio import AsyncConnection
from agentlab.client.attach import Attachment
from agentlab.client.core import StreamEvent
from agentlab.client.sync import Connection
from agentlab.client.watch import JobFollower, News, settle
from agentlab.errors import ProvisionFailed
from agentlab.wire import requests, responses
from agentlab.wire.responses import Event, Job, Sandbox


class Client(Connection):
    """The synchronous client.  One call at a time; use one client for each thread.

    `client.sandboxes`, `client.jobs` and so on have a method for each route; what follows makes them pleasant.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None) -> None:
        """`socket` is the daemon's; without it, it is looked for (see `client.discover`)."""
        super().__init__(socket)
        self.sandboxes = methods.Sandboxes(self)
        self.jobs = methods.Jobs(self)
        self.templates = methods.Templates(self)
        self.profiles = methods.Profiles(self)
        self.agents = methods.Agents(self)
        self.events = methods.Events(self)
        self.daemon = methods.Daemon(self)

    def typed(self, name: str, answer: Any, arguments: dict[str, Any]) -> Any:
        """The answer of the row `name` as the type `answer`."""
        found = self.call(name, **_plain(arguments))
        return found if answer is None else answer.model_validate(found)

    def new_sandbox(self, **options: Any) -> Sandbox:
        """Make a sandbox as `sandboxes.create` does, and return once it is ready.  Raises ProvisionFailed."""
        row = self.sandboxes.create(**options)
        for news in settle(self, row.id):
            if news.kind == "end":
                row = Sandbox.model_validate(news.value)
        if row.failure is not None:
            failure = row.failure
            raise ProvisionFailed(sandbox=row.id, step=failure.step, cause=failure.cause, what_to_do=failure.remedy)
        return row

    def run_job(self, task: str, repo: str | os.PathLike[str] | None = None, **options: Any) -> Job:
        """Queue a job on a local repository, a URL, or nothing, and return at once; `wait_job` waits for its end.

        `options` are those of `jobs.create`, and `ref` and `include_uncommitted` for the repository.
        """
        ref, uncommitted = options.pop("ref", None), options.pop("include_uncommitted", False)
        source = None
        if isinstance(repo, str) and "://" in repo:
            source = requests.Repo(url=repo, ref=ref, origin=repo)
        elif repo is not None:
            source = self._send_repository(Path(repo), ref, uncommitted)
        return self.jobs.create(task=task, repo=source, **options)

    def wait_job(self, job: str) -> Job:
        """The job once it has ended, however long that takes."""
        while (row := self.jobs.get(job, wait_s=60.0)).ended_at is None:
            pass
        return row

    def follow_job(self, job: str, offset: int = 0) -> Iterator[News]:
        """A job as it happens, across cuts and restarts of the daemon, until its end."""
        return JobFollower(self, job, offset).news()

    def follow_events(self, since: int | None = None, subject: str | None = None) -> Iterator[Event]:
        """Events as they happen, until the daemon ends the stream."""
        last = None if since is None else str(since)
        for each in self.stream("events.follow", last_id=last, subject=subject):
            yield Event.model_validate_json(each.data)

    def attach(self, sandbox: str, argv: Sequence[str], **options: Any) -> Attachment:
        """A command with its streams connected; see `wire.attach` for the options."""
        return Attachment(self.path, sandbox, list(argv), **options)

    def save_artifact(self, job: str, name: str, into: IO[bytes]) -> int:
        """Copy one artifact into a file and return its length."""
        return self.download("jobs.artifact", into, job=job, name=name)

    def _send_repository(self, path: Path, ref: str | None, uncommitted: bool) -> requests.Repo:
        from agentlab.client.repository import pack

        with tempfile.TemporaryDirectory(prefix="agentlab-pack-") as scratch:
            packed = pack(path, ref, uncommitted, Path(scratch))
            with packed.file.open("rb") as file:
                self.upload(packed.digest, file, packed.bytes_count)
        return requests.Repo(bundle=packed.digest, origin=packed.origin)


class AsyncClient(AsyncConnection):
    """The asynchronous client.  Calls may overlap."""

    def __init__(self, socket: str | os.PathLike[str] | None = None) -> None:
        """`socket` is the daemon's; without it, it is looked for (see `client.discover`)."""
        super().__init__(socket)
        self.sandboxes = async_methods.Sandboxes(self)
        self.jobs = async_methods.Jobs(self)
        self.templates = async_methods.Templates(self)
        self.profiles = async_methods.Profiles(self)
        self.agents = async_methods.Agents(self)
        self.events = async_methods.Events(self)
        self.daemon = async_methods.Daemon(self)

    async def typed(self, name: str, answer: Any, arguments: dict[str, Any]) -> Any:
        """The answer of the row `name` as the type `answer`."""
        found = await self.call(name, **_plain(arguments))
        return found if answer is None else answer.model_validate(found)

    async def wait_sandbox(self, sandbox: str) -> Sandbox:
        """The sandbox once nothing is under way for it."""
        from agentlab.client.watch import settled

        while True:
            row: responses.Sandbox = await self.sandboxes.get(sandbox, wait_s=60.0)
            if settled({"state": str(row.state), "wish": str(row.wish)}):
                return row

    async def wait_job(self, job: str) -> Job:
        """The job once it has ended, however long that takes."""
        while (row := await self.jobs.get(job, wait_s=60.0)).ended_at is None:
            pass
        return row

    async def follow_job(self, job: str, offset: int = 0) -> AsyncIterator[StreamEvent]:
        """A job as it happens, until its end or a cut: then call again with the last id as offset."""
        async for each in self.stream("jobs.follow", last_id=str(offset), job=job):
            yield each

    async def follow_events(self, since: int | None = None, subject: str | None = None) -> AsyncIterator[Event]:
        """Events as they happen, until the daemon ends the stream."""
        last = None if since is None else str(since)
        async for each in self.stream("events.follow", last_id=last, subject=subject):
            yield Event.model_validate_json(each.data)


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.model_dump(mode="json", exclude_none=True) if isinstance(value, requests.Body) else value
        for name, value in arguments.items()
    }
