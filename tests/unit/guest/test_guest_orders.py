"""Orders and answers of the control link: exactly what was agreed on, or Malformed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlab_guest import orders
from agentlab_guest.strict import Malformed

ALL = orders.HOST_ORDERS | orders.GUEST_ORDERS
SAMPLES: tuple[orders.Order, ...] = (
    orders.Execute(argv=["sh"], env={"A": "ü"}, cwd="/", user="root", tty=True, rows=1, columns=2, detached=False),
    orders.Resize(rows=1, columns=2),
    orders.Signal(number=9),
    orders.Identify(name="sb-1", entropy="00"),
    orders.SetClock(clock_ns=1),
    orders.Freeze(path="/", limit_s=2.5),
    orders.Thaw(path="/"),
    orders.Mount(serial="s", label="", path="/work", wait_s=1),
    orders.Unmount(path="/work"),
    orders.Grow(),
    orders.Prepare(),
    orders.Shutdown(),
    orders.Tail(length_max=3),
    orders.Hello(version="1", name="", prepared=False, boot_id="b", kernel="6.1", machine=True),
    orders.Started(pid=1),
    orders.Exited(status=137),
    orders.Failed(code="refused", cause="why"),
    orders.Answer(ms={"clock": 0.5}, text=""),
    orders.Relay(),
)


def test_there_is_a_sample_of_every_order() -> None:
    assert {each.IS for each in SAMPLES} == set(ALL)


@pytest.mark.parametrize("order", SAMPLES, ids=lambda order: order.IS)
def test_an_order_survives_the_wire(order: orders.Order) -> None:
    assert orders.parse(orders.encode(order), ALL) == order


@pytest.mark.parametrize("order", SAMPLES, ids=lambda order: order.IS)
def test_an_unknown_key_is_refused(order: orders.Order) -> None:
    found: dict[str, Any] = json.loads(orders.encode(order)) | {"more": 1}

    with pytest.raises(Malformed, match="unknown key"):
        orders.parse(json.dumps(found).encode(), ALL)


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{}", b'{"is": "nothing"}', b'{"is": []}', b'{"is": "exited"}', b'{"is": "exited", "status": -1}'],
)
def test_what_is_no_order_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        orders.parse(raw, ALL)


def test_a_guest_cannot_give_orders() -> None:
    with pytest.raises(Malformed, match="unknown order"):
        orders.parse(orders.encode(orders.Shutdown()), orders.GUEST_ORDERS)


@given(st.binary(max_size=200))
def test_noise_is_malformed_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(Malformed):
        orders.parse(raw, ALL)
