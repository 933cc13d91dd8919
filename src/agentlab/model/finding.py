"""What a look at the machine found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a probe looked at."""

    name: str  # such as "runtime"
    ok: bool
    detail: str  # what was found: "crun 1.8.1", or what is missing
    remedy: str = ""  # what to do, when not ok
    fatal: bool = True  # False: works without, with a missing guarantee
