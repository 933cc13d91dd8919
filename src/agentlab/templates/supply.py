"""Brings together what of the host a build may see, and keeps the package lists current."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from agentlab.base.clock import Clock
from agentlab.base.files import write_atomic
from agentlab.base.process import ProgramFailed
from agentlab.base.text import one_line
from agentlab.base.units import format_seconds
from agentlab.templates.cache import PackageCache, PackageLists, apt_configuration, ca_bundle
from agentlab.templates.isolation import StepFailed
from agentlab.templates.recipe import Base
from agentlab.templates.rootfs import Provisions
from agentlab.templates.sources import from_mirror, of_machine


class Supply:
    """The host's side of builds: mirrors, caches, certificates, names."""

    def __init__(
        self, cache: PackageCache, clock: Clock, mirror: str | None, lists_fresh_s: float, environ: Mapping[str, str]
    ) -> None:
        self._cache = cache
        self._clock = clock
        self._mirror = mirror
        self._fresh_s = lists_fresh_s
        self._environ = environ
        self._refetched = False

    async def provide(self, base: Base, step_s_max: float, tell: Callable[[str], None], *, fresh: bool) -> Provisions:
        """What the steps of one build need.  Fetches package lists that are missing, too old, or not `fresh`.

        Without a network, lists that were fetched once serve on, which `tell` is told.  Raises StepFailed.
        """
        self._cache.prepare()
        self._refetched = False
        lists = self._cache.lists(self._sources(base))
        bundle = ca_bundle(self._environ)
        have = Provisions(
            cache=self._cache,
            lists=lists,
            apt_config=await apt_configuration(),
            ca_bundle=None if bundle is None else bundle.read_bytes(),
            resolv_conf=_resolv_conf(),
            environ=self._environ,
            step_s_max=step_s_max,
        )
        age_s = None if lists.fetched_at is None else self._clock.now() - lists.fetched_at
        if fresh or age_s is None or not 0 <= age_s < self._fresh_s:
            tell("fetching package lists")
            problem = await self._fetch(lists, have.apt_config)
            if problem is not None and age_s is None:
                raise StepFailed(f"the package lists could not be fetched: {problem}")
            if problem is not None and age_s is not None:
                tell(f"package lists of {format_seconds(max(age_s, 0))} ago: {problem}")
        return have

    async def refetch(self, have: Provisions, tell: Callable[[str], None]) -> bool:
        """Fetch the lists again unless this build has done so; whether there are newer ones now."""
        if self._refetched:
            return False
        tell("fetching package lists again")
        return await self._fetch(have.lists, have.apt_config) is None

    async def _fetch(self, lists: PackageLists, apt_config: str) -> str | None:
        self._refetched = True
        config = self._cache.folder / "apt" / "apt.conf"
        write_atomic(config, apt_config.encode(), 0o644)
        try:
            await lists.fetch(config)
        except ProgramFailed as error:
            return one_line(str(error))
        return None

    def _sources(self, base: Base) -> str:
        if (mirror := base.mirror or self._mirror) is not None:
            return from_mirror(mirror, base.suite)
        if not (text := of_machine(base.suite)):
            raise StepFailed(
                f"this machine's apt sources do not serve the suite {base.suite}; "
                "name a mirror: `templates: {mirror: …}` in the settings"
            )
        return text


def _resolv_conf() -> bytes:
    try:
        return Path("/etc/resolv.conf").read_bytes()
    except OSError:
        return b""
