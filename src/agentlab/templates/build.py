"""Builds templates from recipes, layer by layer, and knows those that are built."""

from __future__ import annotations

import os
import platform
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agentlab.base.clock import Clock, sleep
from agentlab.base.files import exclusive_lock, free_bytes, make_directory
from agentlab.base.process import ProgramFailed, which
from agentlab.base.text import did_you_mean
from agentlab.base.units import format_bytes
from agentlab.errors import DiskFull, NotFound, TemplateBuildFailed, TemplateInUse
from agentlab.model.ids import Digest
from agentlab.model.template import Template
from agentlab.templates.builds import Builds
from agentlab.templates.cache import PackageCache
from agentlab.templates.images import Images
from agentlab.templates.isolation import StepFailed
from agentlab.templates.layers import Layers
from agentlab.templates.provenance import BuildRecord, packages_of, python_version, suite_of
from agentlab.templates.recipe import BUILDER_VERSION, Base, Recipe, Step, continued
from agentlab.templates.rootfs import Provisions, carry_out
from agentlab.templates.shelf import Shelf
from agentlab.templates.supply import Supply

FREE_BYTES_MIN = 2 << 30
STEP_S_MAX = 3600.0
LISTS_FRESH_S = 86400.0
LOCK_POLL_S = 0.5
PROGRAMS = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", "setpriv": "util-linux", "apt-get": "apt"}

# Called with the step's name, its state (waiting, cached, running, done, failed) and a line of detail.
OnStep = Callable[[str, str, str], None]


def quiet(name: str, state: str, detail: str) -> None:
    """An OnStep that tells nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """Steps to be carried out, upon layers that are there already."""

    name: str
    base: Base
    steps: Sequence[Step]
    below: tuple[Digest, ...] = ()


class TemplateBuilder:
    """Recipes, layers and finished builds of one installation.

    Works as root, as root of a user namespace, and as a user with subordinate ids.  Needs the host's network for
    packages that are not in its cache yet.
    """

    def __init__(
        self,
        state_dir: Path,
        cache_dir: Path,
        clock: Clock,
        *,
        recipe_dirs: Sequence[Path] = (),
        mirror: str | None = None,
        step_s_max: float = STEP_S_MAX,
        lists_fresh_s: float = LISTS_FRESH_S,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Layers lie in `state_dir`/templates.  `recipe_dirs` come after the shipped recipes and override them;
        `mirror` (default: the machine's apt sources) serves recipes that name none.
        """
        self._folder = state_dir / "templates"
        self._layers = Layers(self._folder / "layers")
        self._builds = Builds(self._folder / "builds")
        self._images = Images(self._folder / "images")
        self._supply = Supply(PackageCache(cache_dir, clock), clock, mirror, lists_fresh_s, environ)
        self._shelf = Shelf(recipe_dirs)
        self._cache_dir = cache_dir
        self._clock = clock
        self._step_s_max = step_s_max

    def recipes(self) -> Mapping[str, Recipe]:
        """All recipes by name, read anew when a file has changed.  Raises SettingsInvalid with every problem."""
        return self._shelf.recipes()

    def recipe(self, name: str) -> Recipe:
        """The recipe of this name.  NotFound suggests the nearest."""
        known = self.recipes()
        if name not in known:
            raise NotFound(noun="template", name=name, hint=did_you_mean(name, known))
        return known[name]

    def installed(self) -> list[Template]:
        """Every finished build whose layers are all there, the newest first."""
        records = [record for record in self._builds.all() if self._complete(record)]
        return [record.template() for record in sorted(records, key=lambda each: -each.built_at)]

    def find(self, name: str) -> Template | None:
        """The newest finished build of the recipe as it reads now; None if there is none.  NotFound: no recipe."""
        wanted = self.recipe(name).digest
        return next((each for each in self.installed() if each.name == name and each.recipe_digest == wanted), None)

    def layers_of(self, digest: Digest) -> tuple[Path, ...]:
        """The root directories of a build's layers, top first: the lower directories of an overlay; read-only.

        Built inside a user namespace they carry `user.overlay.*` marks: mount them with `userxattr`.
        NotFound if there is no such build.
        """
        return tuple(self._layers.root(Digest(each)) for each in reversed(self._builds.get(digest).layers))

    def provenance(self, digest: Digest) -> BuildRecord:
        """What is recorded of a build.  NotFound if there is no such build."""
        return self._builds.get(digest)

    async def remove(self, digest: Digest, in_use: Collection[Digest] = ()) -> int:
        """Forget a build; delete its VM images and the layers that no other build shares.  The bytes that became free.

        Waits while a build is under way.  TemplateInUse if `in_use` names it, NotFound if there is no such build.
        """
        record = self._builds.get(digest)
        if digest in in_use:
            raise TemplateInUse(name=record.name, users="sandboxes that live on it")
        async with self.locked(record.name, quiet):
            shared = {layer for each in self._builds.all() if each.digest != digest for layer in each.layers}
            self._builds.forget(digest)
            freed = await self._images.remove_of(digest, self._layers)
            # Top first: what an interruption leaves is a shorter stack, from which a later build goes on.
            gone = [Digest(each) for each in reversed(record.layers) if each not in shared]
            return freed + await self._layers.remove(gone)

    async def build(self, recipe: Recipe, on_step: OnStep = quiet, *, refresh: bool = False) -> Template:
        """Build what is missing of `recipe` and return the template; finished steps are never repeated.

        With `refresh` all of it is built anew from current packages, beside what exists.  Cancelling ends the step
        under way; what was finished stays.  Raises TemplateBuildFailed naming the step, DiskFull.
        """
        digests = recipe.digests(platform.machine(), f"{self._clock.now()}" if refresh else "")
        async with self.locked(recipe.name, on_step):
            started = self._clock.monotonic()
            await self._layers.remove_partial()
            base = recipe.steps[0].base
            assert base is not None, "the first step of a recipe is its base"
            await self._build_layers(
                _Work(name=recipe.name, base=base, steps=recipe.steps), digests, on_step, fresh=refresh
            )
            if (record := self._builds.read(digests[-1])) is None:
                record = self._record(recipe, digests, self._clock.monotonic() - started)
                self._builds.write(record)
            return record.template()

    async def extend(self, digest: Digest, steps: Sequence[Step], on_step: OnStep = quiet) -> tuple[Digest, ...]:
        """Build layers upon a finished build without making them a part of it; the digests of all, the lowest first.

        The caller holds `locked`, and takes away the new layers when the build is removed.  Raises as `build` does.
        """
        record = self._builds.get(digest)
        digests = continued(digest, steps)
        base = Base(suite=suite_of(self.layers_of(digest)), mirror=self._mirror_of(record.name))
        below = tuple(Digest(each) for each in record.layers)
        await self._build_layers(_Work(name=record.name, base=base, steps=steps, below=below), digests, on_step)
        return (*below, *digests)

    @asynccontextmanager
    async def locked(self, name: str, on_step: OnStep) -> AsyncIterator[None]:
        """One build at a time for each state and each cache directory, whoever runs it; the others wait."""
        told = False
        with ExitStack() as held:
            for folder in (self._folder, self._cache_dir):
                make_directory(folder, 0o755)
                while True:
                    try:
                        held.enter_context(exclusive_lock(folder / "build.lock"))
                        break
                    except BlockingIOError:
                        if not told:
                            on_step(name, "waiting", "another build is under way")
                            told = True
                        await sleep(LOCK_POLL_S)
            yield

    async def _build_layers(
        self, work: _Work, digests: Sequence[Digest], on_step: OnStep, *, fresh: bool = False
    ) -> None:
        have: Provisions | None = None
        for index, (step, digest) in enumerate(zip(work.steps, digests, strict=True)):
            if self._layers.has(digest):
                on_step(step.name, "cached", "")
                continue
            lowers = tuple(f"{Layers.name(each)}/fs" for each in reversed((*work.below, *digests[:index])))
            try:
                have = have or await self._provide(work.base, step, on_step, fresh=fresh)
                await self._build_layer(step, digest, lowers, have, on_step)
            except StepFailed as error:
                on_step(step.name, "failed", error.cause)
                raise TemplateBuildFailed(
                    name=work.name, step=step.name, cause=error.cause, what_to_do=self._advice(step, digest, error)
                ) from error

    async def _provide(self, base: Base, step: Step, on_step: OnStep, *, fresh: bool) -> Provisions:
        for program, package in PROGRAMS.items():
            if which(program) is None:
                raise StepFailed(f"{program} is not installed: apt-get install {package}")
        return await self._supply.provide(
            base, self._step_s_max, lambda line: on_step(step.name, "running", line), fresh=fresh
        )

    async def _build_layer(
        self, step: Step, digest: Digest, lowers: tuple[str, ...], have: Provisions, on_step: OnStep
    ) -> None:
        def tell(line: str) -> None:
            on_step(step.name, "running", line)

        self._check_disk()
        tell("")
        started = self._clock.monotonic()
        try:
            scratch = await self._layers.begin(digest)
            try:
                await carry_out(step, self._layers.folder, lowers, scratch, have, tell)
            except StepFailed as error:
                # The mirror may have dropped a version that our lists still name: once more with current lists.
                if not (step.base or step.packages) or error.timed_out or not await self._supply.refetch(have, tell):
                    raise
                scratch = await self._layers.begin(digest)
                await carry_out(step, self._layers.folder, lowers, scratch, have, tell)
            took_s = self._clock.monotonic() - started
            await self._layers.commit(digest, step.name, scratch, self._clock.now(), took_s)
        except (ProgramFailed, OSError) as error:
            raise StepFailed(str(error)) from error
        on_step(step.name, "done", f"{took_s:.1f} s, {format_bytes(self._layers.record(digest).bytes_count)}")

    def _advice(self, step: Step, digest: Digest, error: StepFailed) -> str:
        log = self._layers.partial_log(digest)
        where = f"Its whole output is in {log}.  " if log.exists() else ""
        if error.timed_out:
            return f"{where}Raise templates.step_s_max if the step only needs longer; finished steps are kept."
        if step.command is not None or step.files:
            return f"{where}Correct the recipe and build again; finished steps are kept."
        return f"{where}If a mirror or registry was not reached, check the network; finished steps are kept."

    def _record(self, recipe: Recipe, digests: Sequence[Digest], build_s: float) -> BuildRecord:
        packages = packages_of([self._layers.root(digest) for digest in reversed(digests)])
        return BuildRecord(
            name=recipe.name,
            digest=digests[-1],
            recipe_digest=recipe.digest,
            layers=tuple(digests),
            steps=tuple(step.name for step in recipe.steps),
            bytes_count=sum(self._layers.record(digest).bytes_count for digest in digests),
            built_at=self._clock.now(),
            build_s=build_s,
            builder_version=BUILDER_VERSION,
            machine=platform.machine(),
            python_version=python_version(packages),
            packages=packages,
        )

    def _mirror_of(self, name: str) -> str | None:
        """The mirror that a recipe names, if there still is a recipe of this name."""
        recipe = self.recipes().get(name)
        base = None if recipe is None else recipe.steps[0].base
        return None if base is None else base.mirror

    def _complete(self, record: BuildRecord) -> bool:
        return all(self._layers.has(Digest(digest)) for digest in record.layers)

    def _check_disk(self) -> None:
        if (free := free_bytes(self._folder)) < FREE_BYTES_MIN:
            raise DiskFull(path=self._folder, free=format_bytes(free), needed=format_bytes(FREE_BYTES_MIN))
