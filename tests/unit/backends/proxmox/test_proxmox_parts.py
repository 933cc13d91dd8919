"""The smaller parts of the client: lenient reading, fingerprints, the order of endpoints, the body of an upload."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.backends.proxmox import lenient
from agentlab.backends.proxmox.certificate import Endpoint, fingerprint
from agentlab.backends.proxmox.endpoints import ASIDE_S_MAX, ASIDE_S_MIN, Endpoints
from agentlab.backends.proxmox.upload import CHUNK_BYTES, Upload

A, B, C = (Endpoint(host=f"pve{n}.example") for n in (1, 2, 3))
DIGITS = "3778451AC8570F979983253A10F787E43EEB1C1D77E924B8995054F0866F7409"


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


@pytest.mark.parametrize(
    ("value", "number"),
    [("512", 512), (512, 512), (512.9, 512), ("1.5e3", 1500), (True, 1), ("x", 7), (None, 7), ([], 7)],
)
def test_numbers_are_read_from_whatever_they_come_as(value: object, number: int) -> None:
    assert lenient.integer({"memory": value}, "memory", 7) == number


@pytest.mark.parametrize(
    ("value", "truth"), [(1, True), ("1", True), (True, True), ("yes", True), (0, False), ("0", False), (None, False)]
)
def test_booleans_are_read_from_whatever_they_come_as(value: object, truth: bool) -> None:
    assert lenient.truth({"template": value}, "template") is truth


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan", "-inf"])
def test_what_is_no_number_is_the_default(value: object) -> None:
    assert lenient.integer({"x": value}, "x", 3) == 3


@pytest.mark.parametrize(
    "text",
    [
        DIGITS,
        DIGITS.lower(),
        "sha256:" + DIGITS,
        "SHA-256 = " + DIGITS,
        ":".join(DIGITS[n : n + 2] for n in range(0, 64, 2)),
    ],
)
def test_a_fingerprint_may_be_written_in_any_usual_way(text: str) -> None:
    assert fingerprint(text).startswith("37:78:45:1A:")
    assert len(fingerprint(text)) == 95


@pytest.mark.parametrize("text", ["", DIGITS[:-1], DIGITS + "0", "z" * 64, "sha1:" + DIGITS[:40]])
def test_what_is_no_fingerprint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        fingerprint(text)


def test_an_endpoint_with_an_ipv6_address_is_written_in_brackets() -> None:
    assert Endpoint(host="fd00::1").url == "https://[fd00::1]:8006"


def test_the_endpoint_that_worked_last_stays_the_first() -> None:
    endpoints = Endpoints([A, B, C], Clock())

    endpoints.worked(B)

    assert endpoints.order() == [B, A, C]


def test_an_endpoint_that_failed_is_tried_last_for_a_while_that_grows() -> None:
    clock = Clock()
    endpoints = Endpoints([A, B], clock)
    endpoints.failed(A)
    aside = endpoints.order()
    clock.at += ASIDE_S_MIN + 1
    back = endpoints.order()
    for _ in range(20):
        endpoints.failed(A)
    clock.at += ASIDE_S_MAX - 1

    assert (aside, back) == ([B, A], [A, B])
    assert endpoints.order() == [B, A]
    clock.at += 2
    assert endpoints.order() == [A, B]


def test_when_all_have_failed_all_are_tried_all_the_same() -> None:
    endpoints = Endpoints([A, B], Clock())
    endpoints.failed(B)
    endpoints.failed(A)

    assert sorted(each.host for each in endpoints.order()) == ["pve1.example", "pve2.example"]


def test_a_cluster_without_an_endpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="endpoints"):
        Endpoints([], Clock())


@pytest.mark.anyio
async def test_an_upload_never_holds_more_of_its_file_than_one_chunk(tmp_path: Path) -> None:
    file = tmp_path / "image.raw"
    size = CHUNK_BYTES * 5 + 17
    with file.open("wb") as sparse:
        sparse.truncate(size)
    upload = Upload(file=file, name="image.raw", content="import", boundary="edge")

    sizes = [len(each) async for each in upload.stream(size)]

    assert max(sizes) == CHUNK_BYTES
    assert sum(sizes) == upload.length(size)


@pytest.mark.anyio
async def test_a_file_that_becomes_shorter_ends_its_upload(tmp_path: Path) -> None:
    file = tmp_path / "image.raw"
    file.write_bytes(b"x" * 10)
    upload = Upload(file=file, name="image.raw", content="import", boundary="edge")

    with pytest.raises(OSError, match="became shorter"):
        [each async for each in upload.stream(20)]
