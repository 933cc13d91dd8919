"""A sandbox as it is now, read from files and /proc alone."""

from __future__ import annotations

from agentlab.backends import first_process
from agentlab.backends.oci.layout import Layout
from agentlab.backends.oci.machine import Machine
from agentlab.model.network import Namespace
from agentlab.model.sandbox import Mark, Observed, Power


def observed(layout: Layout, machine: Machine, mark: Mark) -> Observed:
    """What the sandbox that bears `mark` does; starts no program."""
    bundle = layout.bundle(mark.sandbox)
    first = first_process.noted(bundle)
    if first is None or not first.lives():
        return Observed(mark=mark, power=Power.STOPPED, exit_detail=_exit_detail(layout, machine, mark, first))
    if machine.runtime.is_held(mark.sandbox, bundle):
        power = Power.ARMED
    else:
        frozen = machine.cgroups.frozen(layout.cgroup(mark.sandbox))
        power = Power.PAUSED if frozen else Power.RUNNING
    return Observed(mark=mark, power=power, end=Namespace(first.pid))


def _exit_detail(layout: Layout, machine: Machine, mark: Mark, first: first_process.FirstProcess | None) -> str:
    if first is None:  # it was stopped in order, or never ran
        try:
            return (layout.bundle(mark.sandbox) / "exit").read_text()
        except OSError:
            return ""
    if machine.cgroups.oom_kills(layout.cgroup(mark.sandbox)):
        return "out of memory: the kernel ended it at its memory limit"
    return "its first process ended"
