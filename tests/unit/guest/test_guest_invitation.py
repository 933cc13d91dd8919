"""What the firmware of a cluster's VM tells: exactly what was agreed on, and short enough."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab_guest.invitation import INVITATION_BYTES_MAX, Invitation, encode, parse
from agentlab_guest.record import replaced
from agentlab_guest.strict import Malformed

LONGEST = Invitation(
    sandbox="sb-abcdefgh",
    daemon="255.255.255.255:65535",
    token="f" * 32,
    fingerprint="A" * 43,
    address="255.255.255.255/32",
    gateway="255.255.255.255",
    nameserver="255.255.255.255",
    mac="ff:ff:ff:ff:ff:ff",
    mtu=65535,
)
SHORTEST = Invitation(sandbox="sb-abcdefgh", daemon="10.0.0.1:1", token="f" * 32, fingerprint="A" * 43)


@pytest.mark.parametrize("invitation", [LONGEST, SHORTEST], ids=["longest", "shortest"])
def test_what_is_encoded_is_parsed_again_and_fits_into_a_serial_number(invitation: Invitation) -> None:
    raw = encode(invitation)

    assert parse(raw) == invitation
    assert len(raw) <= INVITATION_BYTES_MAX - 50  # room for a key or two


def test_address_and_prefix_length_and_port_are_taken_apart() -> None:
    assert LONGEST.home == ("255.255.255.255", 65535)
    assert LONGEST.network == ("255.255.255.255", 32)
    assert SHORTEST.network is None


@pytest.mark.parametrize(
    "change",
    [
        {"daemon": "home:1"},
        {"daemon": "10.0.0.1"},
        {"daemon": "10.0.0.1:65536"},
        {"daemon": "10.0.0.01:1"},
        {"address": "10.0.0.256/24"},
        {"address": "10.0.0.2/33"},
        {"address": "10.0.0.2"},
        {"gateway": "::1"},
        {"mac": "AA:00:00:00:00:00"},
        {"mac": "aa-00-00-00-00-00"},
        {"token": "x" * 65},
    ],
    ids=str,
)
def test_what_a_guest_would_not_understand_is_not_encoded(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        encode(replaced(LONGEST, **change))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"Not Specified",
        b"{}",
        b'{"v":2}',
        encode(SHORTEST).replace(b'"v":1', b'"v":true'),
        encode(SHORTEST)[:-1] + b',"z":1}',
        b" " * (INVITATION_BYTES_MAX + 1),
        json.dumps({"v": 1, "s": "sb-abcdefgh"}).encode(),
    ],
    ids=range(8),
)
def test_another_serial_number_is_no_invitation(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse(raw)


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_malformed_or_an_invitation(raw: bytes) -> None:
    try:
        found = parse(raw)
    except Malformed:
        return
    assert encode(found)
