"""A simulated cluster on a thread of its own, beside tests and daemons that are not asynchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from agentlab.backends.proxmox.privileges import Grantee
from agentlab.base.clock import SystemClock
from agentlab.base.files import make_directory
from agentlab.templates.build import TemplateBuilder
from agentlab.testing.daemon_process import shared_templates
from agentlab.testing.proxmox.latency import Latency
from agentlab.testing.proxmox.process_guests import ProcessGuests
from agentlab.testing.proxmox.server import ProxmoxSim
from agentlab.testing.proxmox.units import GIB
from agentlab.testing.proxmox_rig import ADDRESSES, BRIDGE, POOL, STORAGE, TOKEN_ID, USER, least_token
from agentlab.testing.rootfs import test_cache

START_S_MAX = 60.0
TEMPLATE_VMID = 9000
T = TypeVar("T")


class ProxmoxThread:
    """`with ProxmoxThread(folder) as cluster:`; its guests are processes of this machine.

    `settings` are those of a daemon that makes its sandboxes there, with a token that may do no more than it must.
    """

    def __init__(self, folder: Path, *, version: str = "9.2", latency: Latency | None = None) -> None:
        self._folder, self._version, self._latency = make_directory(folder), version, latency
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="proxmox", daemon=True)
        self._up, self._over = threading.Event(), asyncio.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop
        self.sim: ProxmoxSim

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(START_S_MAX), "the simulated cluster does not start"
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(START_S_MAX)

    def run(self, work: Callable[[ProxmoxSim], Awaitable[T]]) -> T:
        """Do something to the cluster, on its own thread; what came of it."""

        async def done() -> T:
            return await work(self.sim)

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(START_S_MAX)

    def settings(self, guest_port: int) -> dict[str, Any]:
        """`backends.proxmox` of a daemon whose guests find it on this port of this machine."""
        token_file = self._folder / "token"
        token_file.touch(0o600)
        token_file.write_text(self._token)
        return {
            "endpoints": list(self.sim.endpoints.values()),
            "fingerprints": list(self.sim.fingerprints.values()),
            "token_file": str(token_file),
            "pool": POOL,
            "storage": STORAGE,
            "uploads": STORAGE,
            "bridge": BRIDGE,
            "templates": {"base": TEMPLATE_VMID},
            "network": {
                "subnet": str(ADDRESSES.network),
                "addresses": f"{ADDRESSES.first}-{ADDRESSES.last}",
                "gateway": str(ADDRESSES.gateway),
            },
            "placement": {"memory_overcommit": 16.0, "cpu_overcommit": 64.0},
            "guest_listen": f"127.0.0.1:{guest_port}",
            "guest_address": f"127.0.0.1:{guest_port}",
        }

    async def _live(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
            guests = ProcessGuests(folder=self._folder / "guests", walled=True, lower=_base())
            made = ProxmoxSim(
                version=self._version, guests=guests, folder=self._folder / "storage", latency=self._latency
            )
            async with made as self.sim:
                self.sim.add_template(TEMPLATE_VMID, disk_bytes=GIB)
                self._token = least_token(self.sim, self._grantee())
                self._up.set()
                await self._over.wait()
        except BaseException as error:  # told to whoever started it, on another thread
            self._failure = error
            self._up.set()
            raise

    def _grantee(self) -> Grantee:
        return Grantee(
            token=f"{USER}!{TOKEN_ID}",
            pool=POOL,
            version=int(self._version.partition(".")[0]),
            templates=(TEMPLATE_VMID,),
            storages=(STORAGE,),
            bridge=BRIDGE,
        )


def _base() -> Path:
    """The layers of the shipped template `base`, as the root of all guests: an overlay takes them as one name."""
    state = shared_templates()
    builder = TemplateBuilder(state, test_cache() / "packages", SystemClock())
    found = builder.find("base")
    assert found is not None
    return Path(":".join(str(each) for each in builder.layers_of(found.digest)))
