"""The monitor of a VM: QEMU's own commands, over one connection to its process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, EventListener, ExecuteError, QMPClient, QMPError

from agentlab.backends.interface import Gone, Refused, Unavailable
from agentlab.backends.qemu.command import CONSOLE_BYTES, CONSOLE_CHARDEV
from agentlab.backends.qemu.layout import MONITOR
from agentlab.backends.qemu.sockets import connected, hand_over
from agentlab.base.clock import sleep
from agentlab.base.tasks import TaskScope

CONNECT_S_MAX = 20.0  # a loaded machine may take long to load the program
ANSWER_S_MAX = 20.0
MOVE_S_MAX = 120.0  # saving or loading the state of the devices: memory itself does not pass through
_POLL_S = 0.002
_CHANGES = ("STOP", "RESUME", "SHUTDOWN", "RESET", "GUEST_PANICKED", "BLOCK_IO_ERROR")
_STATE = "state"

# A process that ends takes its monitor with it.  Whoever waited for an answer is told; in the log it is no error.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Monitor:
    """One connection; QEMU serves one at a time.  Made by `connect`.

    Each call raises Gone if the process has gone, Unavailable if it does not answer in time, Refused with QEMU's own
    words if it says no.
    """

    def __init__(self, client: QMPClient, connection: socket.socket, on_change: Callable[[], None]) -> None:
        self._client = client
        self._connection = connection
        self._on_change = on_change
        self._status: str | None = None
        self._handing = asyncio.Lock()  # what is handed over belongs to the command that comes next
        self.ended_by = ""  # once the guest has ended: QEMU's word for how, such as "guest-shutdown"

    @classmethod
    async def connect(cls, room: Path, scope: TaskScope, on_change: Callable[[], None]) -> Monitor:
        """Connect to the process whose sockets lie in `room`; `on_change` is called when its run state may be another.

        Cancelling leaves nothing behind.  Raises Gone if nobody will ever answer, Unavailable after CONNECT_S_MAX.
        """
        try:
            connection = connected(room, MONITOR)
        except OSError as error:
            raise Gone(f"the VM's monitor cannot be reached: {error.strerror}", "Its process has ended.") from error
        client = QMPClient("agentlab")
        monitor = cls(client, connection, on_change)
        listener = EventListener(_CHANGES)
        client.register_listener(listener)
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                await client.connect(connection)
        except TimeoutError:
            connection.close()
            raise Unavailable("the VM's monitor does not answer", "The machine may be overloaded.") from None
        except ConnectError as error:
            connection.close()
            raise Gone(f"the VM's process ended: {error.exc}", "See its own words in the cause.") from error
        except asyncio.CancelledError:
            connection.close()
            raise
        scope.start(monitor._listen(listener), "monitor")
        return monitor

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Give a command to QEMU and return its answer."""
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise Unavailable(f"the VM's process does not answer {command}", "The machine may be overloaded.") from None
        except ExecuteError as error:
            raise Refused(f"QEMU refused {command}: {error}") from error
        except (QMPError, OSError, EOFError) as error:
            raise Gone(f"the VM's process ended during {command}", "Start the sandbox again.") from error

    async def status(self) -> str:
        """QEMU's run state, such as "running"; asked anew only after something changed."""
        if self._status is None:
            self._status = str((await self.execute("query-status"))["status"])
        return self._status

    async def go(self) -> None:
        """Let the guest run."""
        self._status = None
        await self.execute("cont")

    async def halt(self) -> None:
        """Hold the guest."""
        self._status = None
        await self.execute("stop")

    async def save(self, descriptor: int) -> None:
        """Write the state of everything but shared memory to an open file."""
        await self._shared_memory_stays()
        async with self._handing:
            hand_over(self._connection, descriptor)
            await self.execute("getfd", {"fdname": _STATE})
        await self.execute("migrate", {"uri": f"fd:{_STATE}"})
        async with asyncio.timeout(MOVE_S_MAX):
            while (found := await self.execute("query-migrate")).get("status") != "completed":
                if found.get("status") in ("failed", "cancelled"):
                    raise Refused(f"QEMU could not save its state: {found.get('error-desc', 'no reason given')}")
                await sleep(_POLL_S)

    async def load(self, descriptor: int) -> None:
        """Read what `save` wrote, from an open file that the process has inherited under this number."""
        await self._shared_memory_stays()
        await self.execute("migrate-incoming", {"uri": f"fd:{descriptor}"})
        async with asyncio.timeout(MOVE_S_MAX):
            while (await self.execute("query-status"))["status"] == "inmigrate":
                await sleep(_POLL_S)
        self._status = None

    async def lend(self, *descriptors: int) -> str:
        """Hand over open files of one file, one for each way to use it; the name by which QEMU opens it.

        It is known by this name for as long as QEMU uses it.
        """
        number: int | None = None
        async with self._handing:
            for each in descriptors:
                hand_over(self._connection, each)
                arguments = {} if number is None else {"fdset-id": number}
                number = int((await self.execute("add-fd", arguments))["fdset-id"])
        return f"/dev/fdset/{number}"

    async def take_back(self, name: str) -> None:
        """Let QEMU forget what it was lent under this name and does not use."""
        await self.execute("remove-fd", {"fdset-id": int(name.rpartition("/")[2])})

    async def save_devices(self, descriptor: int) -> None:
        """Write the state of everything but memory to a file that is open for writing; the guest must be held.

        The command was made for Xen, which saves memory by itself, too.
        """
        name = await self.lend(descriptor)
        try:
            await self.execute("xen-save-devices-state", {"filename": name, "live": False})
        finally:
            await self.take_back(name)

    async def console(self) -> str:
        """What the guest's console has shown since it was last asked, at most CONSOLE_BYTES of it."""
        answer = await self.execute("ringbuf-read", {"device": CONSOLE_CHARDEV, "size": CONSOLE_BYTES})
        return str(answer)

    async def quit(self) -> None:
        """Let the process end; quiet if it has."""
        with contextlib.suppress(Gone, Unavailable):
            await self.execute("quit")

    async def close(self) -> None:
        """Let go of the connection; the VM goes on."""
        # Whatever broke the connection has been told to those who were waiting for an answer.
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(ANSWER_S_MAX):
                await self._client.disconnect()
        self._connection.close()

    async def _shared_memory_stays(self) -> None:
        capability = {"capability": "x-ignore-shared", "state": True}
        await self.execute("migrate-set-capabilities", {"capabilities": [capability]})

    async def _listen(self, listener: EventListener) -> None:
        async for event in listener:
            self._status = None
            if event["event"] == "SHUTDOWN":
                details = event.get("data")
                self.ended_by = str(details.get("reason", "")) if isinstance(details, dict) else ""
            self._on_change()
