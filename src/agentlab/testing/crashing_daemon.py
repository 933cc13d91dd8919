"""`agentlabd` that kills itself with SIGKILL at one named point: the production code, with the point wrapped around it.

AGENTLAB_CRASH_AT is `before:<point>` or `after:<point>`; the points are those of POINTS.  The daemon crashes the first
time only (a file remembers), so that a restarted one goes on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentlab.daemon.main import main
from agentlab.services import session
from agentlab.services.harvest import Harvest
from agentlab.services.reconcile.interpret import Interpreter
from agentlab.services.reconcile.jobs import JobReconciler

STEPS = ("create", "arm", "policy", "start", "destroy", "detach")
OTHERS: dict[str, tuple[type[Any], str]] = {
    "ask-sandbox": (JobReconciler, "_ask_sandbox"),
    "launch": (JobReconciler, "_launch"),
    "redeem": (session._Session, "_redeem"),
    "accepted": (session._Session, "_accepted"),
    "event": (Harvest, "_event"),
    "output": (Harvest, "_output"),
    "artifact": (Harvest, "_stored"),
    "report": (Harvest, "_report"),
}
POINTS = tuple(f"{when}:{point}" for point in (*STEPS, *OTHERS) for when in ("before", "after"))


def arm(point: str, remembered: Path) -> None:
    """Wrap the code of `point` so that its first execution ends this process."""
    when, name = point.split(":")

    def crash() -> None:
        if not remembered.exists():
            remembered.write_text(point)
            os.kill(os.getpid(), signal.SIGKILL)

    if name in STEPS:
        _wrap(Interpreter, "_act", when, crash, lambda arguments: arguments[2].name == name)
    else:
        owner, method = OTHERS[name]
        _wrap(owner, method, when, crash, lambda arguments: True)


def _wrap(
    owner: type[Any], method: str, when: str, crash: Callable[[], None], applies: Callable[[tuple[Any, ...]], bool]
) -> None:
    original = getattr(owner, method)

    async def wrapped(self: Any, *arguments: Any) -> Any:
        if when == "before" and applies(arguments):
            crash()
        result = await original(self, *arguments)
        if when == "after" and applies(arguments):
            crash()
        return result

    setattr(owner, method, wrapped)


if __name__ == "__main__":
    arm(os.environ["AGENTLAB_CRASH_AT"], Path(os.environ["AGENTLAB_CRASH_FILE"]))
    main()
