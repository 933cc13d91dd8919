"""The long steps of a job, one at a time in a thread of their own, so that the link never waits for them."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable

from agentlab_guest.account import Account, StepFailed, find_account
from agentlab_guest.bootstrap import Bootstrap
from agentlab_guest.collect import collect_work, printable
from agentlab_guest.git import Aborted, Patience, TimeUp
from agentlab_guest.globs import Finder, Offer, name_problem, offer_file
from agentlab_guest.machine import Failed, Fetched, Happening, Harvest, Prepared
from agentlab_guest.prepare import Launch, prepare
from agentlab_guest.record import record, replaced
from agentlab_guest.redact import Redactor
from agentlab_guest.repo import fetch
from agentlab_guest.report import Failure, Skipped

FETCH_S_MAX = 3600.0
PREPARE_S_MAX = 120.0
RESERVED = {"result.bundle": "bundle", "result.patch": "patch"}


@record
class Gathered:
    """Everything that is to be offered has been; the harvest still lacks what the daemon refuses."""

    harvest: Harvest


class Steps:
    """Runs steps and posts what comes of them.  `offer` may wait until the link has room."""

    def __init__(
        self,
        job: Bootstrap,
        state: str,
        *,
        redactor: Redactor,
        post: Callable[[Happening | Gathered], None],
        offer: Callable[[Offer], None],
    ) -> None:
        self._job, self._state, self._redactor = job, state, redactor
        self._post, self._offer = post, offer
        self._patience = Patience("none", 0)
        self._phase = ""
        self.account: Account | None = None
        self.launch: Launch | None = None

    def fetch(self, bundle: str | None) -> None:
        """Start fetching; posts Fetched or Failed."""
        self._start("fetch", "FETCH_S_MAX", FETCH_S_MAX, lambda: self._fetch(bundle))

    def prepare(self) -> None:
        """Start preparing; posts Prepared or Failed."""
        self._start("prepare", "PREPARE_S_MAX", PREPARE_S_MAX, self._prepare)

    def collect(self, base: str | None) -> None:
        """Start collecting; posts Gathered."""
        self._start("collect", "collect_s_max", self._job.collect_s_max, lambda: self._collect(base))

    def abort(self) -> None:
        """Give up the step under way; it posts Failed soon."""
        self._patience.give_up()

    def _start(self, phase: str, limit_name: str, limit_s: float, work: Callable[[], Happening | Gathered]) -> None:
        self._phase, self._patience = phase, Patience(limit_name, limit_s)
        threading.Thread(target=self._run, args=(work,), name=phase, daemon=True).start()

    def _run(self, work: Callable[[], Happening | Gathered]) -> None:
        try:
            event = work()
        except StepFailed as error:
            event = Failed(failure=error.failure)
        except Aborted:
            event = self._failed("it was given up on request", "None is needed.")
        except TimeUp as error:
            event = self._failed(f"it took longer than {error}", "Try again.")
        except Exception as error:  # the fence of this thread: a defect of ours must end the job, not hang it
            traceback.print_exc()
            event = self._failed(f"{type(error).__name__}: {error}", "This is a defect of AgentLab: please report it.")
        self._post(event)

    def _failed(self, cause: str, remedy: str) -> Happening | Gathered:
        failure = Failure(phase=self._phase, cause=cause[:900], remedy=remedy)
        return Gathered(harvest=Harvest(failure=failure)) if self._phase == "collect" else Failed(failure=failure)

    def _fetch(self, bundle: str | None) -> Happening:
        self.account = find_account(self._job.user)
        return Fetched(base_commit=fetch(self._job, self.account, self._state, bundle, self._patience))

    def _prepare(self) -> Happening:
        assert self.account is not None
        self.launch = prepare(self._job, self.account, self._patience)
        return Prepared()

    def _collect(self, base: str | None) -> Gathered:
        account = self.account or find_account(self._job.user)
        work = collect_work(self._job, account, self._state, base, self._patience)
        skipped = list(work.harvest.skipped)
        harvest = work.harvest
        for path, name in ((work.bundle, "result.bundle"), (work.patch, "result.patch")):
            if path is None:
                continue
            if (offer := offer_file(path, name, RESERVED[name])) is None:
                failure = Failure(phase="collect", cause=f"{name} cannot be read", remedy="Check the sandbox's disk.")
                harvest = replaced(harvest, failure=failure)
            else:
                self._offer(offer)
        skipped += self._declared()
        return Gathered(harvest=replaced(harvest, skipped=tuple(skipped)))

    def _declared(self) -> list[Skipped]:
        finder = Finder(self._job)
        for offer in finder.offers():
            if offer.name in RESERVED:
                finder.skip(offer.name, "its name is reserved for the work itself")
            elif self._redactor.text(offer.name) != offer.name:
                finder.skip(self._redactor.text(offer.name), "its name contains a secret")
            else:
                assert name_problem(offer.name) is None
                self._offer(offer)
                continue
            os.close(offer.file)
        return finder.skipped


def bounded(skipped: list[Skipped], count_max: int, redactor: Redactor) -> tuple[Skipped, ...]:
    """The list for the report: without secrets, and saying how many more there were."""
    shown = skipped if len(skipped) <= count_max else skipped[: count_max - 1]
    found = [Skipped(name=_clean(each.name, redactor), reason=_clean(each.reason, redactor)) for each in shown]
    if len(skipped) > count_max:
        found.append(Skipped(name="…", reason=f"and {len(skipped) - len(shown)} more"))
    return tuple(found)


def _clean(text: str, redactor: Redactor) -> str:
    return printable(redactor.text(text), 900)
