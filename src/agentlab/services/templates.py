"""Templates: built in the background, one at a time; rows tell how far a build is."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from agentlab.base.clock import Clock
from agentlab.base.tasks import TaskScope
from agentlab.base.text import did_you_mean, one_line
from agentlab.errors import AgentLabError, NotFound, TemplateBuildFailed, TemplateInUse
from agentlab.model import event as facts
from agentlab.model.event import Event
from agentlab.model.failure import Failure
from agentlab.model.ids import Digest
from agentlab.model.template import Template
from agentlab.store import events, sandboxes, templates
from agentlab.store.database import Database, Tx
from agentlab.templates.build import TemplateBuilder
from agentlab.templates.recipe import Recipe

log = logging.getLogger(__name__)

PROGRESS_S = 0.5  # how often the latest line of a step is written


class Templates:
    """What a sandbox can be cloned from."""

    def __init__(self, *, database: Database, clock: Clock, builder: TemplateBuilder, scope: TaskScope) -> None:
        self._database, self._clock, self._builder, self._scope = database, clock, builder, scope
        self._one_at_a_time = asyncio.Lock()
        self._building: dict[str, asyncio.Task[None]] = {}

    async def reconcile(self) -> None:
        """At start: rows say what lies on disk, and a build that died with the last daemon is not `building`."""
        now = self._clock.now()
        stored = {row.digest: row for row in self._database.read(templates.list)}
        present = {each.digest: each for each in self._builder.installed()}
        interrupted = Failure(
            code="template/build-failed",
            step="build",
            cause="the daemon ended during the build",
            remedy="Build it again; finished steps are kept: `agentlab template build`.",
            at=now,
        )

        def write(tx: Tx) -> None:
            for digest, row in stored.items():
                if row.state == "building":
                    templates.put(tx, replace(row, state="failed", failure=interrupted))
                elif row.state == "ready" and digest not in present:
                    templates.remove(tx, digest)
            for digest, row in present.items():
                if digest not in stored or stored[digest].state != "ready":
                    templates.put(tx, row)

        await self._database.write(write)

    def list(self) -> list[Template]:
        """Every build that is known, and a row without a build for each recipe that has none."""
        built = self._database.read(templates.list)
        names = {row.name for row in built}
        missing = [_unbuilt(recipe) for name, recipe in sorted(self._builder.recipes().items()) if name not in names]
        return [*built, *missing]

    def get(self, name: str) -> Template:
        """The newest usable build, else what is known of it.  NotFound."""
        found = self._database.read(lambda tx: templates.get(tx, name))
        if found is not None:
            return found
        return _unbuilt(self._recipe(name))

    async def build(self, name: str) -> Template:
        """Begin a build, or join the one that runs; `ready` at once if the recipe has not changed since the last."""
        recipe = self._recipe(name)
        if (current := self._builder.find(name)) is not None:
            known = self._database.read(lambda tx: templates.by_digest(tx, current.digest))
            if known is None or known.state != "ready":
                await self._database.write(lambda tx: templates.put(tx, current))
            return current
        if name not in self._building:
            row = replace(_unbuilt(recipe), state="building", step="waiting")
            started = facts.TemplateBuildStarted(subject=name, digest=row.digest)
            await self._record(row, started)
            task = self._scope.start(self._run(recipe, row), f"build {name}")
            self._building[name] = task
            task.add_done_callback(lambda _: self._building.pop(name, None))
        return self.get(name)

    async def remove(self, name: str) -> None:
        """Remove every build of this name that no sandbox uses.  NotFound, TemplateInUse."""
        rows = [row for row in self._database.read(templates.list) if row.name == name]
        if not rows:
            self._recipe(name)
            return
        users = self._database.read(lambda tx: [user for row in rows for user in sandboxes.of_template(tx, row.digest)])
        if users:
            raise TemplateInUse(name=name, users=", ".join(users))
        for row in rows:
            if row.state == "ready":
                await self._builder.remove(row.digest)
            removed = facts.TemplateRemoved(subject=name, digest=row.digest)

            def write(tx: Tx, row: Template = row, removed: facts.TemplateRemoved = removed) -> None:
                templates.remove(tx, row.digest)
                events.append(tx, removed, self._clock.now())

            await self._database.write(write)

    async def _run(self, recipe: Recipe, row: Template) -> None:
        began = self._clock.now()
        on_step = _Progress(self._database, self._clock, row)
        try:
            async with self._one_at_a_time:
                built = await self._builder.build(recipe, on_step)
        except AgentLabError as error:
            await self._failed(recipe.name, row, error)
            return
        now = self._clock.now()
        await self._database.write(lambda tx: templates.remove(tx, row.digest))
        fact = facts.TemplateBuilt(
            subject=recipe.name, digest=built.digest, took_s=round(now - began), bytes_count=built.bytes_count
        )
        await self._record(built, fact)

    async def _failed(self, name: str, row: Template, error: AgentLabError) -> None:
        step = str(error.facts.get("step", "build")) if isinstance(error, TemplateBuildFailed) else "build"
        cause = str(error.facts.get("cause", error))
        log.warning("template build failed", extra={"template": name, "step": step, "cause": cause})
        failure = Failure(code=error.code, step=step, cause=cause, remedy=error.advice, at=self._clock.now())
        fact = facts.TemplateFailed(subject=name, step=step, cause=cause, remedy=error.advice)
        await self._record(replace(row, state="failed", step=step, failure=failure), fact)

    async def _record(self, row: Template, fact: Event) -> None:
        def write(tx: Tx) -> None:
            templates.put(tx, row)
            events.append(tx, fact, self._clock.now())

        await self._database.write(write)

    def _recipe(self, name: str) -> Recipe:
        recipes = self._builder.recipes()
        if name not in recipes:
            raise NotFound(noun="template", name=name, hint=did_you_mean(name, recipes))
        return recipes[name]


class _Progress:
    """Tells the store how far a build is: each step's end as an event, its latest line in the row."""

    def __init__(self, database: Database, clock: Clock, row: Template) -> None:
        self._database, self._clock, self._row = database, clock, row
        self._began: dict[str, float] = {}
        self._told_at = 0.0

    def __call__(self, step: str, state: str, detail: str) -> None:
        now = self._clock.now()
        began = self._began.setdefault(step, now)
        if state in ("done", "cached"):
            took_ms = round((now - began) * 1000)
            fact = facts.TemplateStep(subject=self._row.name, step=step, took_ms=took_ms, cached=state == "cached")
            self._database.write_soon(lambda tx: events.append(tx, fact, now))
        elif now - self._told_at >= PROGRESS_S or not detail:
            self._told_at = now
            line = f"{step}: {one_line(detail, 120)}" if detail else step
            self._database.write_soon(lambda tx: templates.put(tx, replace(self._row, step=line)))


def _unbuilt(recipe: Recipe) -> Template:
    return Template(
        name=recipe.name,
        digest=Digest(recipe.digest),
        recipe_digest=Digest(recipe.digest),
        state="not built",
        bytes_count=0,
        built_at=None,
        build_s=None,
    )
