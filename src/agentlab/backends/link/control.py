"""The control link to the guest program of one VM: what the daemon has it do, without any network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

from agentlab.backends.interface import Command, Refused, Unavailable
from agentlab.backends.link.channels import Channel, GuestStream, Link, LinkGone
from agentlab.backends.link.execution import START_S_MAX, VmExecution, failure
from agentlab.base.tasks import TaskScope
from agentlab_guest import orders

FLOOD_AFTER_S = 2.0  # without an answer; then an earlier daemon may have left something half sent
ANSWER_S_MAX = 30.0
PROGRAM_S_MAX = 300.0  # of orders for which the guest runs programs on disks
COMMAND_BYTES_MAX = 1 << 20
TAIL_LENGTH_MAX = orders.TAIL_LENGTH_MAX
T = TypeVar("T", bound=orders.Order)
Relay = Callable[[GuestStream], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestHello:
    """What the guest program said of itself; hostile, like all that comes from there.

    `name`: what `identify` gave it, empty until then.  `prepared`: its memory was saved, or comes from a saved one.
    `machine`: it runs a machine of its own, not a process of a test.
    """

    version: str
    protocol: int
    name: str
    prepared: bool
    boot_id: str
    kernel: str
    machine: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """What the VM's network interface shall be; no other addresses pass its port."""

    mac: str
    address: IPv4Address
    prefix_length: int
    gateway: IPv4Address
    mtu: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whom the machine shall be.  What is None stays as it is.

    `entropy`: at least 64 random bytes of this VM alone.  `clock_ns`: since the epoch, taken as late as possible.
    """

    name: str
    entropy: bytes
    clock_ns: int | None = None
    machine_id: str | None = None
    boot_id: str | None = None
    hostname: str | None = None
    nic: Nic | None = None
    nameserver: str | None = None
    secrets_bytes: int | None = None
    grow: bool = False


class Control:
    """A connection to the guest program.  It ends for good; make another one then.

    Calls raise Unavailable with a cause when the link breaks or the guest does not answer in time (which also ends the
    link, because what was asked is then unknown), and Refused for what the guest will refuse again.
    """

    def __init__(self, link: Link, scope: TaskScope, relay: Relay) -> None:
        self._link, self._scope, self._relay = link, scope, relay
        self.hello: GuestHello

    @classmethod
    async def connect(cls, socket: Path, *, token: bytes, scope: TaskScope, relay: Relay, timeout_s: float) -> Control:
        """Reach the guest program behind QEMU's socket; may begin before the VM's first instruction.

        `token`: 32 random bytes.  `relay` serves each connection that a program of the guest makes to the guest link,
        as a child of `scope`.  Unavailable, with what is known, when there is no answer in time.
        """

        async def reach(link: Link) -> None:
            try:
                await asyncio.get_running_loop().create_unix_connection(lambda: link, str(socket))
            except OSError as error:
                cause = f"{socket}: {error.strerror or error}"
                raise Unavailable(cause, "QEMU may have ended; see its log.") from None

        return await cls._begun(reach, "QEMU", token, scope, relay, timeout_s)

    @classmethod
    async def adopt(
        cls, transport: asyncio.Transport, *, token: bytes, scope: TaskScope, relay: Relay, timeout_s: float
    ) -> Control:
        """Take over a connection that the guest program made, of which nothing has come since it was let in.

        See `connect`.  The transport is ours from now on, and ends with the control or with a failure of this call.
        """

        async def take_over(link: Link) -> None:
            transport.set_protocol(link)
            link.connection_made(transport)

        return await cls._begun(take_over, "the guest", token, scope, relay, timeout_s)

    @classmethod
    async def _begun(
        cls,
        reach: Callable[[Link], Awaitable[None]],
        peer: str,
        token: bytes,
        scope: TaskScope,
        relay: Relay,
        timeout_s: float,
    ) -> Control:
        made: list[Control] = []

        def opened(channel: Channel) -> None:
            made[0]._serve(channel)

        link = Link(token, opened, peer)
        made.append(cls(link, scope, relay))
        try:
            async with asyncio.timeout(timeout_s):
                await reach(link)
                await _greeted(link)
        except TimeoutError:
            known = "answered, and did not say what it is" if link.answered else "did not answer"
            cause = f"the guest program {known} within {timeout_s:g} s ({link.received_bytes} bytes came from it)"
            raise Unavailable(cause, "See the sandbox's console.") from None
        finally:
            if link.hello is None:
                link.end("given up")
        made[0].hello = _hello(link)
        return made[0]

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._link.gone.is_set()

    @property
    def cause(self) -> str:
        """Why it ended."""
        return self._link.cause

    async def wait_closed(self) -> None:
        """Return when the connection has ended."""
        await self._link.gone.wait()

    async def close(self) -> None:
        """End the connection: commands in the guest end, launched programs go on."""
        self._link.end("closed by the daemon")

    # Orders

    async def identify(self, identity: Identity) -> Mapping[str, float]:
        """Make the machine this one; how long each step took in the guest, in ms."""
        nic = identity.nic
        order = orders.Identify(
            name=identity.name,
            entropy=identity.entropy.hex(),
            clock_ns=identity.clock_ns,
            machine_id=identity.machine_id,
            boot_id=identity.boot_id,
            hostname=identity.hostname,
            mac=None if nic is None else nic.mac,
            address=None if nic is None else str(nic.address),
            prefix_length=None if nic is None else nic.prefix_length,
            gateway=None if nic is None else str(nic.gateway),
            mtu=None if nic is None else nic.mtu,
            nameserver=identity.nameserver,
            secrets_bytes=identity.secrets_bytes,
            grow=identity.grow,
        )
        return (await self._ask(order)).ms

    async def set_clock(self, clock_ns: int) -> None:
        """Set the guest's clock, after a pause of the VM."""
        await self._ask(orders.SetClock(clock_ns=clock_ns))

    async def freeze(self, limit_s: float, path: str = "/") -> None:
        """Write out the file system mounted there and hold it still, for at most `limit_s`."""
        await self._ask(orders.Freeze(path=path, limit_s=limit_s))

    async def thaw(self, path: str = "/") -> None:
        """End `freeze`.  Unavailable if its limit had passed before: what was copied meanwhile is not consistent."""
        if (await self._ask(orders.Thaw(path=path))).text == "late":
            raise Unavailable(f"{path} had thawed by itself before the copy was complete", "Try again.")

    async def mount(self, serial: str, label: str, path: str = "/work", wait_s: float = 10.0) -> str:
        """Mount the disk of that serial number.

        Returns what it held: blank (it got a file system), clean or unclean (it was checked); mounted if it was before.
        Refused for a disk that holds something else, that does not appear in time, or where another one is mounted.
        """
        order = orders.Mount(serial=serial, label=label, path=path, wait_s=wait_s)
        return (await self._ask(order, PROGRAM_S_MAX)).text

    async def unmount(self, path: str = "/work") -> None:
        """Unmount; quiet if nothing is mounted.  Refused, with who is in the way, if it is in use."""
        await self._ask(orders.Unmount(path=path))

    async def grow(self) -> int:
        """Let the root file system fill its disk; its size in bytes."""
        text = (await self._ask(orders.Grow(), PROGRAM_S_MAX)).text
        return int(text) if text.isascii() and text.isdigit() else 0

    async def prepare(self) -> None:
        """Let the guest become small and still, before its memory is saved."""
        await self._ask(orders.Prepare(), PROGRAM_S_MAX)

    async def shutdown(self) -> None:
        """Begin an orderly end of the machine; returns once the guest has taken the order."""
        await self._ask(orders.Shutdown())

    async def tail(self, length_max: int = TAIL_LENGTH_MAX) -> str:
        """The last of what launched programs wrote, and the kernel's remarks on memory."""
        return (await self._ask(orders.Tail(length_max=length_max))).text

    async def execute(self, command: Command) -> VmExecution:
        """Start a command.  Its `end` must be called; `running` does that."""
        channel = self._open(_execute(command, detached=False))
        execution = VmExecution(channel, terminal=command.tty)
        try:
            async with asyncio.timeout(START_S_MAX):
                await execution.started()
        except TimeoutError:
            channel.abort()
            raise Unavailable(f"the guest program did not start the command within {START_S_MAX:g} s") from None
        except BaseException:
            channel.abort()
            raise
        return execution

    @asynccontextmanager
    async def running(self, command: Command) -> AsyncIterator[VmExecution]:
        """A command that ends with its context."""
        execution = await self.execute(command)
        try:
            yield execution
        finally:
            await execution.end()

    async def launch(self, command: Command, stdin: bytes) -> None:
        """Start a program that outlives this connection, with `stdin` as its whole input."""
        channel = self._open(_execute(command, detached=True))
        channel.write(stdin)
        channel.end()
        await self._answer(channel, orders.Started, START_S_MAX)

    # Below

    def _serve(self, channel: Channel) -> None:
        self._scope.start(self._served(GuestStream(channel)), "relay")

    async def _served(self, stream: GuestStream) -> None:
        try:
            await self._relay(stream)
        finally:
            stream.close()

    def _open(self, order: orders.Order) -> Channel:
        if not self._link.gone.is_set() and not self._link.room_for_channels:
            raise Unavailable("too many commands run in this sandbox at the same time", "Wait until some have ended.")
        try:
            return self._link.open(order)
        except LinkGone as error:
            raise Unavailable(f"the control link to the guest program broke: {error}") from None
        except ValueError as error:
            raise Refused(str(error), "Give large inputs through standard input or a file.") from None

    async def _ask(self, order: orders.Order, answer_s_max: float = ANSWER_S_MAX) -> orders.Answer:
        return await self._answer(self._open(order), orders.Answer, answer_s_max)

    async def _answer(self, channel: Channel, kind: type[T], answer_s_max: float) -> T:
        try:
            async with asyncio.timeout(answer_s_max):
                while not channel.orders:
                    if channel.closed:
                        cause = channel.cause or "it ended the order without an answer"
                        raise Unavailable(f"the guest program did not answer: {cause}")
                    await channel.change()
        except TimeoutError:
            self._link.end(f"the guest program did not answer within {answer_s_max:g} s")
            raise Unavailable(self._link.cause, "See the sandbox's console.") from None
        finally:
            channel.abort()
        order = channel.orders.popleft()
        if isinstance(order, orders.Failed):
            raise failure(order)
        if not isinstance(order, kind):
            self._link.end("the guest program answered something else than was asked")
            raise Unavailable(self._link.cause)
        return order


async def _greeted(link: Link) -> None:
    while link.hello is None:
        if link.gone.is_set():
            raise Unavailable(f"the control link broke: {link.cause}", "See the sandbox's console.")
        try:
            async with asyncio.timeout(FLOOD_AFTER_S):
                await link.changed.wait()
        except TimeoutError:
            link.flood()
        link.changed.clear()


def _hello(link: Link) -> GuestHello:
    said = link.hello
    assert said is not None
    return GuestHello(
        version=said.version,
        protocol=link.protocol,
        name=said.name,
        prepared=said.prepared,
        boot_id=said.boot_id,
        kernel=said.kernel,
        machine=said.machine,
    )


def _execute(command: Command, *, detached: bool) -> orders.Execute:
    if sum(len(each) for each in command.argv) > COMMAND_BYTES_MAX:
        raise Refused("the command line is too long", "Give large inputs through standard input or a file.")
    return orders.Execute(
        argv=list(command.argv),
        env=command.env,
        cwd=command.cwd,
        user=command.user,
        tty=command.tty,
        rows=command.rows,
        columns=command.columns,
        detached=detached,
    )
