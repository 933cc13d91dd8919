"""Programs that the host starts: watched ones on a channel, and detached ones that outlive it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Callable

from agentlab_guest import mux
from agentlab_guest.console import open_console, tail, tell_console
from agentlab_guest.orders import Execute, Exited, Failed, Order, Resize, Signal, Started
from agentlab_guest.spawn import NOT_FOUND, NOT_RUNNABLE, Child, entrance, new_group, spawn, take_terminal, watch
from agentlab_guest.whom import People, Person, UnknownUser
from agentlab_guest.wire import Sink, Source, Wire

PROGRAMS_MAX = 128
PIPE_BYTES = 256 << 10  # of standard output: what the program writes before the other side must run
F_SETPIPE_SZ = 1031
LAUNCH_INPUT_BYTES_MAX = 1 << 20


class Refused(Exception):
    """The order cannot be carried out, now or later."""


class Programs:
    """All of them; the ones on channels end with their connection."""

    def __init__(self, wire: Wire, console: str, *, machine: bool) -> None:
        self._wire, self._console, self._machine = wire, console, machine
        self._running: dict[int, _Program | _Launch] = {}
        self._launches = 0
        self._people = People()

    def execute(self, channel: int, order: Execute) -> None:
        """Start one.  What is wrong with it is told on the channel."""
        try:
            if len(self._running) >= PROGRAMS_MAX:
                raise Refused(f"PROGRAMS_MAX = {PROGRAMS_MAX} commands run already")
            _check(order)
            person = self._people.find(order.user)
            if order.detached:
                self._running[channel] = _Launch(self, self._wire, channel, order, person)
            else:
                program = _Program(self._wire, channel, self._ended)
                self._running[channel] = program
                program.begin(order, person)
        except (UnknownUser, Refused) as error:
            self._fail(channel, "refused", str(error))
        except OSError as error:
            self._fail(channel, "failed", f"the program could not be started: {error}")

    def launch(self, order: Execute, person: Person, stdin: bytearray) -> int:
        """Start a detached one, in a control group of its own; its process id.  Raises OSError."""
        self._launches += 1
        source = os.memfd_create("stdin", os.MFD_CLOEXEC)
        try:
            os.write(source, stdin)
            os.lseek(source, 0, os.SEEK_SET)
            console, group = open_console(self._console), -1
            try:
                group = new_group(f"launched-{os.getpid()}-{self._launches}") if self._machine else -1
                child = spawn(order, person, (source, console, console), entrance(group))
            finally:
                os.close(console)
                if group >= 0:
                    os.close(group)
        finally:
            os.close(source)
        watch(self._wire.reactor, child, lambda status: self._launched_ended(child.pid, status))
        return child.pid

    def happened(self, kind: int, channel: int, payload: bytes) -> bool:
        """Data or the end of something on a program's channel; False if it is none."""
        program = self._running.get(channel)
        if program is None:
            return False
        if kind == mux.DATA:
            program.data(payload)
        elif kind == mux.END:
            program.end_of_input()
        elif kind == mux.CLOSE and program.close():
            self._ended(channel)
        return True

    def message(self, channel: int, order: Order) -> None:
        """A message on a program's channel."""
        program = self._running.get(channel)
        if isinstance(program, _Program):
            if isinstance(order, Signal):
                program.signal(order.number)
            elif isinstance(order, Resize):
                program.resize(order.rows, order.columns)

    def drop(self) -> None:
        """The connection has gone: end what ran on its channels."""
        running, self._running = self._running, {}
        for program in running.values():
            program.close()

    def _ended(self, channel: int) -> None:
        self._running.pop(channel, None)
        self._wire.close(channel)

    def launched(self, channel: int) -> None:
        """The channel of a detached program has done its work."""
        self._ended(channel)

    def _fail(self, channel: int, code: str, cause: str) -> None:
        self._wire.order(channel, Failed(code=code, cause=cause[:1000]))
        self._ended(channel)

    def _launched_ended(self, pid: int, status: int) -> None:
        # The console of the machine outlives the machine: the host can still read it when nobody answers.
        if self._machine:
            tell_console(f"agentlab: launched program {pid} ended with status {status}: {tail(self._console, 1500)}\n")


class _Program:
    """A watched program."""

    def __init__(self, wire: Wire, channel: int, ended: Callable[[int], None]) -> None:
        self._wire, self._channel, self._ended = wire, channel, ended
        self._terminal = -1
        self._status: int | None = None
        self._child: Child | None = None
        self._open = 0  # outputs that are not at their end
        self._closed = False  # by the host, or with the connection
        self._sources: list[Source] = []
        self._sink: Sink | None = None

    def begin(self, order: Execute, person: Person) -> None:
        """Start it.  OSError if that fails for another reason than the program itself."""
        try:
            if order.tty:
                self._begin_on_terminal(order, person)
            else:
                self._begin_on_pipes(order, person)
        except OSError as error:
            self._not_started(order, error)

    def _begin_on_pipes(self, order: Execute, person: Person) -> None:
        pairs = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        theirs = (pairs[0][0], pairs[1][1], pairs[2][1])
        ours = (pairs[0][1], pairs[1][0], pairs[2][0])
        try:
            self._child = spawn(order, person, theirs, None)
        except BaseException:
            _close_all(ours)
            raise
        finally:
            _close_all(theirs)
        for descriptor in ours:
            os.set_blocking(descriptor, False)
        fcntl.fcntl(ours[1], F_SETPIPE_SZ, PIPE_BYTES)
        self._begun(ours[0], ((mux.DATA, ours[1]), (mux.ERR, ours[2])))

    def _begin_on_terminal(self, order: Execute, person: Person) -> None:
        master, slave = os.openpty()
        try:
            set_size(master, order.rows, order.columns)
            os.fchown(slave, person.uid, -1)  # programs open it again by its name
            self._child = spawn(order, person, (slave, slave, slave), take_terminal)
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        os.set_blocking(master, False)
        self._terminal = master
        self._begun(os.dup(master), ((mux.DATA, master),))

    def _begun(self, stdin: int, outputs: tuple[tuple[int, int], ...]) -> None:
        assert self._child is not None
        self._wire.order(self._channel, Started(pid=self._child.pid))
        self._sink = Sink(self._wire, self._channel, stdin)
        self._open = len(outputs)
        self._sources = [Source(self._wire, self._channel, kind, each, self._output_ended) for kind, each in outputs]
        if len(outputs) == 1:
            self._wire.mark(self._channel, mux.ERR_END)
        watch(self._wire.reactor, self._child, self._exited)

    def _not_started(self, order: Execute, error: OSError) -> None:
        """As a shell would tell it: that a program is missing is a result."""
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR) and error.filename != order.cwd
        runnable = missing or error.errno in (errno.EACCES, errno.ENOEXEC, errno.EISDIR) or error.filename == order.cwd
        if not runnable or error.errno is None:
            raise error
        what = order.cwd if error.filename == order.cwd else order.argv[0]
        complaint = f"agentlab: {what}: {os.strerror(error.errno)}\n".encode()
        self._wire.order(self._channel, Started(pid=0))
        self._wire.say(self._channel, mux.ERR, complaint)
        self._wire.mark(self._channel, mux.END)
        self._wire.mark(self._channel, mux.ERR_END)
        self._exited(NOT_FOUND if missing else NOT_RUNNABLE)

    def _output_ended(self) -> None:
        self._open -= 1
        self._terminal = -1  # if it was one, its source has closed it
        self._finish()

    def _exited(self, status: int) -> None:
        self._status = status
        self._wire.order(self._channel, Exited(status=status))
        if self._sink is not None:
            self._sink.close()
        self._finish()

    def _finish(self) -> None:
        if self._status is not None and (self._open == 0 or self._closed):
            self._ended(self._channel)

    def data(self, payload: bytes) -> None:
        if self._sink is not None:
            self._sink.add(payload)

    def end_of_input(self) -> None:
        if self._sink is not None and self._terminal < 0:
            self._sink.end()

    def signal(self, number: int) -> None:
        if self._child is not None and self._status is None and 0 < number < signal.NSIG:
            # The group is the command's own, and its leader is not reaped: the number still means the same.
            _kill_group(self._child.pid, number)

    def resize(self, rows: int, columns: int) -> None:
        if self._terminal >= 0:
            set_size(self._terminal, rows, columns)

    def close(self) -> bool:
        """Kill what still runs, and let go of everything; whether the program has ended already."""
        self._closed = True
        self.signal(signal.SIGKILL)
        for source in self._sources:
            source.close()
        self._terminal = -1
        if self._sink is not None:
            self._sink.close()
        return self._status is not None


class _Launch:
    """A detached program whose input is still on its way."""

    def __init__(self, all_: Programs, wire: Wire, channel: int, order: Execute, person: Person) -> None:
        self._all, self._wire, self._channel, self._order, self._person = all_, wire, channel, order, person
        self._input = bytearray()

    def data(self, payload: bytes) -> None:
        if len(self._input) + len(payload) > LAUNCH_INPUT_BYTES_MAX:
            cause = f"the input exceeds LAUNCH_INPUT_BYTES_MAX = {LAUNCH_INPUT_BYTES_MAX}"
            self._wire.order(self._channel, Failed(code="refused", cause=cause))
            self._all.launched(self._channel)
            return
        self._input += payload
        self._wire.consumed(self._channel, len(payload))

    def end_of_input(self) -> None:
        try:
            pid = self._all.launch(self._order, self._person, self._input)
        except OSError as error:
            self._wire.order(self._channel, Failed(code="failed", cause=f"the program could not be started: {error}"))
        else:
            self._wire.order(self._channel, Started(pid=pid))
        self._all.launched(self._channel)

    def close(self) -> bool:
        self._input = bytearray()
        return True


def set_size(terminal: int, rows: int, columns: int) -> None:
    """Tell a terminal its size; its foreground processes hear of it."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))


def _check(order: Execute) -> None:
    if not order.argv or not order.argv[0]:
        raise Refused("there is no program to run")
    if any("\0" in each for each in (*order.argv, order.cwd, *order.env, *order.env.values())):
        raise Refused("a zero byte in the command")
    if any("=" in name for name in order.env):
        raise Refused("an environment variable whose name contains =")


def _kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _close_all(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
