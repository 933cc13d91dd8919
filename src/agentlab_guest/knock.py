"""How a guest that comes over the network is let in, before the control link begins.  Both ends, sans I/O.

Lines of JSON: the guest says who it is and shows a token or a credential; the daemon answers welcome or refused.  A
token buys a credential, which the guest keeps and acknowledges with `accepted`.  From the next byte on the connection
is the control link of `mux`, in which the host speaks first.
"""

from __future__ import annotations

from agentlab_guest import orders
from agentlab_guest.record import record
from agentlab_guest.strict import Malformed, count, maybe, one_of, text

LINE_BYTES_MAX = 1024
PROTOCOL_MIN, PROTOCOL_MAX = 1, 1
REFUSALS = (
    "malformed",  # not this protocol
    "version",  # none that both ends speak
    "unknown",  # no such sandbox, token or credential
    "spent",  # the token was redeemed before, by another
    "expired",  # the token was not redeemed in time
    "busy",  # the daemon cannot now; come again
)
_word = text(128)


@record
class Knock(orders.Order):
    """Who comes.  One of `token` and `credential`; `nonce` is random and stays the same for the same token."""

    IS = "knock"
    META = {
        "protocol_min": count,
        "protocol_max": count,
        "version": _word,
        "sandbox": _word,
        "nonce": _word,
        "token": maybe(_word),
        "credential": maybe(_word),
    }
    protocol_min: int
    protocol_max: int
    version: str
    sandbox: str
    nonce: str
    token: str | None = None
    credential: str | None = None


@record
class Welcome(orders.Order):
    """Come in.  `credential` is for the next times; only after a token."""

    IS = "welcome"
    META = {"protocol": count, "credential": maybe(_word)}
    protocol: int
    credential: str | None = None


@record
class Refused(orders.Order):
    """Stay out."""

    IS = "refused"
    META = {"code": one_of(*REFUSALS), "message": text(400)}
    code: str
    message: str


@record
class Accepted(orders.Order):
    """The credential is safe: the token is spent."""

    IS = "accepted"


FROM_GUEST: dict[str, type[orders.Order]] = {kind.IS: kind for kind in (Knock, Accepted)}
FROM_DAEMON: dict[str, type[orders.Order]] = {kind.IS: kind for kind in (Welcome, Refused)}


class _Side:
    def __init__(self, kinds: dict[str, type[orders.Order]]) -> None:
        self._kinds = kinds
        self.rest = bytearray()  # what came after the last line

    def receive(self, data: bytes) -> orders.Order | None:
        """The line that `data` completes, if it does; ask again with nothing for one more.  Raises Malformed."""
        self.rest += data
        line, found, rest = self.rest.partition(b"\n")
        if len(line) >= LINE_BYTES_MAX:
            raise Malformed(f"a line of more than LINE_BYTES_MAX = {LINE_BYTES_MAX}")
        if not found:
            return None
        self.rest = rest
        return orders.parse(line, self._kinds)


class GuestSide(_Side):
    """The guest's end of one connection."""

    def __init__(self) -> None:
        super().__init__(FROM_DAEMON)

    def answer(self, data: bytes) -> Welcome | None:
        """The daemon's answer once it is complete.  Raises NotLetIn, and Malformed for anything else."""
        found = self.receive(data)
        if isinstance(found, Refused):
            raise NotLetIn(found)
        if isinstance(found, Welcome) and not PROTOCOL_MIN <= found.protocol <= PROTOCOL_MAX:
            raise Malformed("a protocol that nobody offered")
        return found if isinstance(found, Welcome) else None


class HostSide(_Side):
    """The daemon's end of one connection.  Whatever a guest sends beyond what is its turn is Malformed."""

    def __init__(self) -> None:
        super().__init__(FROM_GUEST)

    def knock(self, data: bytes) -> Knock | None:
        """Who comes, once that is known.  Raises Malformed."""
        found = self.receive(data)
        if found is not None:
            if not isinstance(found, Knock) or (found.token is None) == (found.credential is None):
                raise Malformed("a knock with one of token and credential comes first")
            self._in_turn()
        return found if isinstance(found, Knock) else None

    def acceptance(self, data: bytes) -> bool:
        """Whether the guest has the credential.  Raises Malformed."""
        found = self.receive(data)
        if found is not None:
            if not isinstance(found, Accepted):
                raise Malformed("accepted comes after welcome")
            self._in_turn()
        return found is not None

    def _in_turn(self) -> None:
        if self.rest:
            raise Malformed("the daemon speaks first")


class NotLetIn(Exception):
    """The daemon refused, and why."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.code = refused.code


def line(order: orders.Order) -> bytes:
    """The order as a line."""
    return orders.encode(order) + b"\n"


def agreed(knock: Knock) -> int:
    """The newest protocol that both ends speak; 0 if there is none."""
    version = min(PROTOCOL_MAX, knock.protocol_max)
    return version if version >= max(PROTOCOL_MIN, knock.protocol_min) else 0
