"""What the host orders over the control link and what the guest answers, as values: JSON, strictly parsed.

The first message of a channel says what the channel is; `Hello` alone comes on channel 0.
"""

from __future__ import annotations

from collections.abc import Mapping

from agentlab_guest.record import fields, record
from agentlab_guest.strict import (
    Check,
    Data,
    Malformed,
    checked,
    count,
    dump,
    flag,
    list_of,
    map_of,
    maybe,
    one_of,
    parse_object,
    seconds,
    text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

ARGUMENTS_BYTES_MAX = 1 << 20
CAUSE_LENGTH_MAX = 4000
TAIL_LENGTH_MAX = 32 << 10  # of what `Tail` is answered with, in characters
_word, _path, _line = text(256), text(4096), text(CAUSE_LENGTH_MAX)


class Order:
    """What all share: the word that names them on the link, and the shape of their values."""

    IS: ClassVar[str]
    META: ClassVar[Mapping[str, Check]] = {}
    __slots__ = ()


# From the host


@record
class Execute(Order):
    """Run a program; the channel's data are its input and output.  `detached`: it outlives channel and connection.

    A detached program's input is what comes before END, its output goes to the console file, and the channel ends
    when it has started.
    """

    IS = "execute"
    META = {
        "argv": list_of(text(ARGUMENTS_BYTES_MAX), 65536),
        "env": map_of(text(ARGUMENTS_BYTES_MAX), 65536),
        "cwd": _path,
        "user": _word,
        "tty": flag,
        "rows": count,
        "columns": count,
        "detached": flag,
    }
    argv: list[str]
    env: dict[str, str]
    cwd: str
    user: str
    tty: bool
    rows: int
    columns: int
    detached: bool


@record
class Resize(Order):
    """The terminal's size, on the program's channel."""

    IS = "resize"
    META = {"rows": count, "columns": count}
    rows: int
    columns: int


@record
class Signal(Order):
    """A signal to the program's group, on its channel."""

    IS = "signal"
    META = {"number": count}
    number: int


@record
class Identify(Order):
    """Become this machine.  What is null is left as it is; `entropy` is hexadecimal.  Answered with times in ms."""

    IS = "identify"
    META = {
        "name": _word,
        "entropy": text(1024),
        "clock_ns": maybe(count),
        "machine_id": maybe(_word),
        "boot_id": maybe(_word),
        "hostname": maybe(_word),
        "mac": maybe(_word),
        "address": maybe(_word),
        "prefix_length": maybe(count),
        "gateway": maybe(_word),
        "mtu": maybe(count),
        "nameserver": maybe(_word),
        "secrets_bytes": maybe(count),
        "grow": flag,
    }
    name: str
    entropy: str
    clock_ns: int | None = None
    machine_id: str | None = None
    boot_id: str | None = None
    hostname: str | None = None
    mac: str | None = None
    address: str | None = None
    prefix_length: int | None = None
    gateway: str | None = None
    mtu: int | None = None
    nameserver: str | None = None
    secrets_bytes: int | None = None
    grow: bool = False


@record
class SetClock(Order):
    """Set the clock, in ns since the epoch."""

    IS = "set-clock"
    META = {"clock_ns": count}
    clock_ns: int


@record
class Freeze(Order):
    """Freeze the file system that is mounted there; thawed by itself after `limit_s`."""

    IS = "freeze"
    META = {"path": _path, "limit_s": seconds}
    path: str
    limit_s: float


@record
class Thaw(Order):
    """Thaw what `Freeze` froze.  `text` of the answer is "late" if the limit had passed."""

    IS = "thaw"
    META = {"path": _path}
    path: str


@record
class Mount(Order):
    """Mount the disk of that serial number; one without content gets a file system of that label first."""

    IS = "mount"
    META = {"serial": _word, "label": text(16), "path": _path, "wait_s": seconds}
    serial: str
    label: str
    path: str
    wait_s: float


@record
class Unmount(Order):
    """Unmount; quiet if nothing is mounted there."""

    IS = "unmount"
    META = {"path": _path}
    path: str


@record
class Grow(Order):
    """Let the root file system fill its disk."""

    IS = "grow"


@record
class Prepare(Order):
    """Become small and still: this machine's memory is about to be saved, and cloned."""

    IS = "prepare"


@record
class Shutdown(Order):
    """Power off in an orderly way.  Answered before it begins."""

    IS = "shutdown"


@record
class Tail(Order):
    """The last of what launched programs wrote and of the kernel's remarks on memory, as `text`."""

    IS = "tail"
    META = {"length_max": count}
    length_max: int


# From the guest


@record
class Hello(Order):
    """What the guest is.  `name`: whom it was told to be, empty until then; `prepared`: its memory was saved."""

    IS = "hello"
    META = {"version": _word, "name": _word, "prepared": flag, "boot_id": _word, "kernel": _word, "machine": flag}
    version: str
    name: str
    prepared: bool
    boot_id: str
    kernel: str
    machine: bool


@record
class Started(Order):
    """The program runs."""

    IS = "started"
    META = {"pid": count}
    pid: int


@record
class Exited(Order):
    """The program ended; 128 + n for signal n."""

    IS = "exited"
    META = {"status": count}
    status: int


@record
class Failed(Order):
    """The order was not carried out.  `code`: refused (will be again), failed."""

    IS = "failed"
    META = {"code": one_of("refused", "failed"), "cause": _line}
    code: str
    cause: str


@record
class Answer(Order):
    """The order was carried out; `ms` are its parts' times."""

    IS = "answer"
    META = {"ms": lambda value: _times(value), "text": text(TAIL_LENGTH_MAX)}
    ms: dict[str, float]
    text: str


@record
class Relay(Order):
    """Somebody in the guest connected to the guest link's socket: this channel is the connection."""

    IS = "relay"


HOST_ORDERS: dict[str, type[Order]] = {
    kind.IS: kind
    for kind in (
        Execute, Resize, Signal, Identify, SetClock, Freeze, Thaw, Mount, Unmount, Grow, Prepare, Shutdown, Tail,
    )
}  # fmt: skip
GUEST_ORDERS: dict[str, type[Order]] = {kind.IS: kind for kind in (Hello, Started, Exited, Failed, Answer, Relay)}


def encode(order: Order) -> bytes:
    """The JSON that `parse` reads."""
    return dump({"is": order.IS} | {name: value for name, value in fields(order).items() if value is not None})


def parse(raw: Data, kinds: Mapping[str, type[Order]]) -> Order:
    """Raises Malformed naming the first key that is missing, unknown, mistyped or out of range."""
    found = parse_object(raw)
    kind = kinds.get(word) if type(word := found.pop("is", None)) is str else None
    if kind is None:
        raise Malformed("unknown order")
    return kind(**checked(found, kind.META, kind.IS))


def _times(value: object) -> bool:
    if type(value) is not dict or len(value) > 64:
        return False
    return all(len(name) <= 64 and seconds(each) for name, each in value.items())
