"""How long things take in the simulated cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agentlab.base.clock import sleep
from agentlab.base.entropy import Entropy

Span = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds, from and to; a kind of work that is not named takes none.

    `work` is keyed by the type of a task (qmclone holds the storage's lock meanwhile) or by `call` (every call),
    `fork` and `reap` (until a worker works, and until it is gone), `agent` (a call to an agent that answers),
    `agent-absent` (to one that does not), `exec-missing`, `unplug`.
    """

    work: Mapping[str, Span] = field(default_factory=dict)
    refused_s: float = 0.0  # how long wrong credentials wait for their answer; 3 s on the real thing
    boot_s: float = 0.0  # from the start until the guest's agent answers
    resources_lag_s: float = 0.0  # the round in which /cluster/resources learns names, states and sizes
    tasks_lag_s: float = 0.0  # how late /cluster/tasks is
    cleanup_chance: float = 0.0  # that after a quick stop and start something holds the VM's lock
    cleanup_s: float = 30.0

    @classmethod
    def none(cls) -> Latency:
        """Everything at once: for unit tests."""
        return cls()

    @classmethod
    def realistic(cls) -> Latency:
        """As measured on a small cluster with a directory storage and without KVM."""
        return cls(
            work={
                "call": (0.008, 0.03),
                "fork": (0.002, 0.01),
                "reap": (0.02, 0.05),
                "qmclone": (0.3, 1.0),
                "qmconfig": (0.03, 0.08),
                "config": (0.01, 0.02),
                "qmcreate": (0.3, 4.0),
                "qmstart": (1.2, 2.2),
                "qmstop": (0.4, 0.9),
                "qmshutdown": (1.0, 3.0),
                "qmreboot": (1.0, 3.0),
                "qmreset": (0.02, 0.05),
                "qmpause": (0.02, 0.05),
                "qmresume": (0.02, 0.2),
                "qmsuspend": (1.0, 2.5),
                "qmdestroy": (0.1, 0.25),
                "qmtemplate": (0.05, 0.1),
                "qmsnapshot": (0.2, 1.0),
                "qmrollback": (0.3, 1.5),
                "qmdelsnapshot": (0.1, 0.3),
                "qmmove": (0.1, 0.6),
                "qmigrate": (2.0, 8.0),
                "resize": (0.03, 0.08),
                "imgcopy": (0.05, 0.3),
                "imgdel": (0.03, 0.08),
                "agent": (0.05, 0.25),
                "agent-absent": (3.0, 3.1),
                "exec-missing": (5.1, 5.3),
                "unplug": (0.1, 1.0),
            },
            refused_s=3.0,
            boot_s=33.0,
            resources_lag_s=10.0,
            tasks_lag_s=2.0,
            cleanup_chance=0.2,
        )

    async def spend(self, kind: str, entropy: Entropy) -> None:
        """Let the time of one piece of work pass."""
        low, high = self.work.get(kind, (0.0, 0.0))
        if high > 0:
            await sleep(low + (high - low) * entropy.fraction())
