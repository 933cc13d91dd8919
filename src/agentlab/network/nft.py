"""The one place that runs nft: transactions and listings, several callers' in one process."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from agentlab.base import process
from agentlab.base.text import one_line
from agentlab.model.network import Port
from agentlab.network.interface import NetworkError
from agentlab.network.namespace import in_own_thread
from agentlab.network.rtnetlink import rules_generation
from agentlab.network.ruleset import Listing, parse_echo, parse_listing

NFT_TIMEOUT_S = 20.0
TRANSACTION_MEMBERS_MAX = 200  # callers that share one transaction

_REMEDY = "Install nftables (Debian: apt-get install nftables) and see that the daemon has CAP_NET_ADMIN."


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What the kernel told about a transaction."""

    added: Listing  # the members that it added, as the kernel sent them back; no rules
    generation: int | None  # the number of the kernel's rule set after it; None if nft did not tell
    unbroken: bool  # nobody else has changed any rule since the rules were last read and trusted

    def proves(self, port: Port) -> bool:
        """Whether this alone shows that the port is bound and everything else stands as it was read before."""
        return self.unbroken and self.added.holds(port)


class Nft:
    """Applies scripts and reads tables.  Calls that wait together are carried out together: a burst of sandboxes
    costs a few processes, not a few per sandbox.  Scripts must be repeatable.

    The kernel numbers the states of its rule set, whoever changes it.  Once a listing was found right and `trust`ed,
    a transaction of ours with the very next number needs no other listing: what it added is in the kernel's echo, and
    nothing else has changed.
    """

    def __init__(self, table: str, timeout_s: float = NFT_TIMEOUT_S) -> None:
        self._table = table
        self._timeout_s = timeout_s
        self._scripts: list[tuple[str, asyncio.Future[Applied]]] = []
        self._trusted: int | None = None  # the generation up to which everything is known to be right
        self._readers: list[asyncio.Future[Listing | None]] = []
        self._canonical: tuple[str, Listing] | None = None  # of the script that was tried last
        self._writing, self._reading = asyncio.Lock(), asyncio.Lock()

    async def apply(self, script: str) -> Applied:
        """Carry out `script` in one transaction, alone or with others'.  NetworkError if nft refuses it.

        Cancelling leaves open whether it was carried out.
        """
        done: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()
        entry = (script, done)
        self._scripts.append(entry)
        try:
            async with self._writing:
                if not done.done():
                    await self._apply_waiting()
        finally:
            if entry in self._scripts:
                self._scripts.remove(entry)
        return done.result()

    def trust(self, applied: Applied) -> None:
        """A listing made after `applied` was right: what follows it without a gap needs no listing."""
        if applied.generation is not None and applied.generation > (self._trusted or 0):
            self._trusted = applied.generation

    async def unchanged(self) -> bool:
        """Whether nobody has changed any rule since a listing was trusted, but we with transactions that succeeded."""
        async with self._writing:  # none of ours is under way
            return self._trusted is not None and await in_own_thread(rules_generation) == self._trusted

    def distrust(self) -> None:
        """A listing was wrong: the next transaction must be followed by another."""
        self._trusted = None

    async def listing(self) -> Listing | None:
        """What the kernel holds now, not before this call; None where one of the tables is missing."""
        done: asyncio.Future[Listing | None] = asyncio.get_running_loop().create_future()
        self._readers.append(done)
        try:
            async with self._reading:
                if not done.done():
                    readers, self._readers = self._readers, []
                    found = await self._list_tables()
                    for reader in readers:
                        if not reader.done():
                            reader.set_result(found)
        finally:
            if done in self._readers:
                self._readers.remove(done)
            # A reader that was taken along by a cancelled one asks for itself.
        return done.result() if done.done() else await self.listing()

    async def canonical(self, script: str) -> Listing:
        """What nft itself prints for `script`, loaded into a network namespace of its own that ends with the call.

        This is also the check before anything is applied: NetworkError if nft or the kernel cannot do it.  A script
        that was the last to be tried is not tried again.
        """
        if self._canonical is not None and self._canonical[0] == script:
            return self._canonical[1]
        lists = (f"echo && echo '{_BREAK}' && \"$0\" --stateless list table {each}" for each in self._tables)
        script_of_shell = " && ".join(('"$0" --file -', *lists))
        command = ("unshare", "--net", "--", "sh", "-c", script_of_shell, _nft())
        try:
            ended = await process.run(command, stdin=script.encode(), timeout_s=self._timeout_s)
        except process.ProgramFailed as failure:
            raise NetworkError(f"the rule set does not load on this machine: {failure}", _REMEDY) from failure
        _, inet, bridge = ended.out.decode().split(f"\n{_BREAK}\n")
        self._canonical = (script, parse_listing(inet, bridge))
        return self._canonical[1]

    @property
    def _tables(self) -> Sequence[str]:
        return (f"inet {self._table}", f"bridge {self._table}")

    async def _apply_waiting(self) -> None:
        batch = self._scripts[:TRANSACTION_MEMBERS_MAX]
        try:
            applied = await self._run("".join(script for script, _ in batch))
        except NetworkError as error:
            if len(batch) == 1:
                _fail(batch[0][1], error)
            else:
                await self._apply_singly(batch)
        else:
            for _, done in batch:
                _succeed(done, applied)
        self._scripts = [entry for entry in self._scripts if not entry[1].done()]

    async def _apply_singly(self, batch: Sequence[tuple[str, asyncio.Future[Applied]]]) -> None:
        """One of several was refused, so nothing was applied: find out which."""
        for script, done in batch:
            try:
                applied = await self._run(script)
            except NetworkError as error:
                _fail(done, error)
            else:
                _succeed(done, applied)

    async def _run(self, script: str) -> Applied:
        argv = (_nft(), "--echo", "--file", "-")
        try:
            ended = await process.run(argv, stdin=script.encode(), timeout_s=self._timeout_s)
        except process.ProgramFailed as failure:
            raise NetworkError(f"the network policy could not be applied: {failure}", _REMEDY) from failure
        told = ended.out.decode()
        generation = int(match[1]) if (match := _GENERATION.search(told)) else None
        unbroken = generation is not None and self._trusted is not None and generation == self._trusted + 1
        if unbroken:
            self._trusted = generation
        return Applied(added=parse_echo(self._table, told), generation=generation, unbroken=unbroken)

    async def _list_tables(self) -> Listing | None:
        # Two processes, because nft 1.0.6 cannot list two tables in one call.
        inet, bridge = await asyncio.gather(*(self._list(each) for each in self._tables))
        return None if inet is None or bridge is None else parse_listing(inet, bridge)

    async def _list(self, table: str) -> str | None:
        argv = (_nft(), "--stateless", "list", "table", *table.split())
        try:
            ended = await process.run(argv, timeout_s=self._timeout_s, check=False)
        except process.ProgramFailed as failure:
            raise NetworkError(f"the network policy could not be read back: {failure}", _REMEDY) from failure
        if ended.status == 0:
            return ended.out.decode()
        if b"No such file or directory" in ended.err:
            return None
        detail = one_line(ended.err.decode(errors="replace"))
        raise NetworkError(f"the network policy could not be read back: {detail}", _REMEDY)


_GENERATION = re.compile(r"^# new generation (\d+) by process \d+ \(", re.MULTILINE)
_BREAK = "-- here ends a table --"


def _nft() -> str:
    return process.which("nft") or "nft"


def _succeed(done: asyncio.Future[Applied], applied: Applied) -> None:
    if not done.done():
        done.set_result(applied)


def _fail(done: asyncio.Future[Applied], error: NetworkError) -> None:
    if not done.done():
        done.set_exception(error)
