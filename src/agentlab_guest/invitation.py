"""What the firmware of a cluster's VM tells it: where home is, and a right to enter there once.

It stands in the machine's serial number, which is short.  Both ends' definition.
"""

from __future__ import annotations

from agentlab_guest.record import fields, record
from agentlab_guest.strict import Check, Malformed, checked, count, dump, maybe, parse_object, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SERIAL = "/sys/class/dmi/id/product_serial"  # for root alone
INVITATION_BYTES_MAX = 339  # what Proxmox VE's `smbios1` holds beside a uuid, of its 512 characters in base64
VERSION = 1
MAC_LENGTH = 17


@record
class Invitation:
    """Of one sandbox and one boot.

    `daemon`: ADDRESS:PORT.  `token`: to be redeemed once.  `fingerprint`: SHA-256 of the daemon's certificate, in
    base64url.  `address` with its prefix length, `gateway`, `nameserver`, `mac`, `mtu`: of the machine's network card;
    without an address somebody else sets it up, without a MAC it is the only one.
    """

    sandbox: str
    daemon: str
    token: str
    fingerprint: str
    address: str | None = None
    gateway: str | None = None
    nameserver: str | None = None
    mac: str | None = None
    mtu: int | None = None

    @property
    def home(self) -> tuple[str, int]:
        """Address and port of the daemon."""
        host, _, port = self.daemon.partition(":")
        return host, int(port)

    @property
    def network(self) -> tuple[str, int] | None:
        """The machine's own address and its prefix length."""
        if self.address is None:
            return None
        own, _, prefix_length = self.address.partition("/")
        return own, int(prefix_length)


def encode(invitation: Invitation) -> bytes:
    """The JSON that `parse` reads, or ValueError beyond INVITATION_BYTES_MAX, and for what `parse` would refuse."""
    given = fields(invitation)
    raw = dump({"v": VERSION} | {key: given[name] for key, name in _KEYS.items() if given[name] is not None})
    if len(raw) > INVITATION_BYTES_MAX:
        raise ValueError(f"an invitation of {len(raw)} bytes exceeds INVITATION_BYTES_MAX")
    if parse(raw) != invitation:
        raise ValueError("an invitation that its guest would not understand")
    return raw


def parse(raw: bytes) -> Invitation:
    """What the firmware told.  Raises Malformed if it is no invitation, or one of another version."""
    if len(raw) > INVITATION_BYTES_MAX:
        raise Malformed("longer than an invitation")
    found = parse_object(raw)
    version = found.pop("v", None)
    if type(version) is not int or version != VERSION:
        raise Malformed(f"not of version {VERSION}")
    values = checked(found, _SHAPE, "invitation")
    return Invitation(**{name: values[key] for key, name in _KEYS.items()})


def _ipv4(value: object) -> bool:
    parts = value.split(".") if type(value) is str else []
    return len(parts) == 4 and all(_number(each, 255) for each in parts)


def _number(value: str, most: int) -> bool:
    return value.isascii() and value.isdigit() and len(value) <= 5 and str(int(value)) == value and int(value) <= most


def _pair(mark: str, most: int) -> Check:
    def check(value: object) -> bool:
        if type(value) is not str:
            return False
        address, found, number = value.partition(mark)
        return bool(found) and _ipv4(address) and _number(number, most)

    return check


def _mac(value: object) -> bool:
    letters = "0123456789abcdef"
    if type(value) is not str or len(value) != MAC_LENGTH:
        return False
    return all(len(each) == 2 and each[0] in letters and each[1] in letters for each in value.split(":"))


_KEYS: Mapping[str, str] = {
    "s": "sandbox",
    "d": "daemon",
    "t": "token",
    "f": "fingerprint",
    "a": "address",
    "g": "gateway",
    "n": "nameserver",
    "m": "mac",
    "u": "mtu",
}
_SHAPE: Mapping[str, Check] = {
    "s": text(40),
    "d": _pair(":", 65535),
    "t": text(64),
    "f": text(43),
    "a": maybe(_pair("/", 32)),
    "g": maybe(_ipv4),
    "n": maybe(_ipv4),
    "m": maybe(_mac),
    "u": maybe(count),
}
