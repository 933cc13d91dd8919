"""The VMs that live, as this daemon holds them; found again after a restart by what is noted in their rooms."""

from __future__ import annotations

from agentlab.backends.interface import BackendError
from agentlab.backends.qemu.layout import Layout, title
from agentlab.backends.qemu.observation import STARTED
from agentlab.backends.qemu.process import BegunProcess, living
from agentlab.backends.qemu.vm import Relay, Vm, console_kept
from agentlab.base.entropy import Entropy
from agentlab.model.ids import SandboxId
from agentlab.model.sandbox import Mark


class Fleet:
    """At most one VM for each sandbox."""

    def __init__(self, layout: Layout, relay: Relay, entropy: Entropy) -> None:
        self._layout, self._relay, self._entropy = layout, relay, entropy
        self._vms: dict[SandboxId, Vm] = {}

    def find(self, mark: Mark) -> Vm | None:
        """The living VM of a sandbox.  One that an earlier daemon began is taken over, and its link is kept."""
        held = self._vms.get(mark.sandbox)
        if held is not None:
            return held if held.lives else None
        room = self._layout.room(mark.sandbox)
        if (found := living(room)) is None:
            return None
        vm = Vm(room, self._layout.bearing(mark).title, found, relay=self._relay, entropy=self._entropy)
        self._vms[mark.sandbox] = vm
        if (room / STARTED).exists():
            vm.stay_linked()
        return vm

    def welcome(self, mark: Mark, begun: BegunProcess) -> Vm:
        """Hold a VM whose process we have just begun."""
        assert mark.sandbox not in self._vms
        room = self._layout.room(mark.sandbox)
        vm = Vm(room, title(mark), begun.process, relay=self._relay, entropy=self._entropy, child=begun.child)
        self._vms[mark.sandbox] = vm
        return vm

    def adopt(self, mark: Mark, vm: Vm) -> None:
        """Hold a VM that was made for nobody in particular."""
        assert mark.sandbox not in self._vms
        vm.room = self._layout.room(mark.sandbox)
        self._vms[mark.sandbox] = vm

    async def forget(self, sandbox: SandboxId) -> None:
        """Let go of a VM; quiet if there is none."""
        if (vm := self._vms.pop(sandbox, None)) is not None:
            await vm.close()

    async def console(self, mark: Mark) -> str:
        """The last of what a sandbox's console showed and its launched programs wrote."""
        if (vm := self.find(mark)) is None:
            return console_kept(self._layout.room(mark.sandbox))
        text = await vm.console()
        if (self._layout.room(mark.sandbox) / STARTED).exists():
            try:
                text += await (await vm.control()).tail()
            except BackendError:
                return text
        return text

    async def close(self) -> None:
        """Let go of all; they go on."""
        for sandbox in list(self._vms):
            await self.forget(sandbox)
