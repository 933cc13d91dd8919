"""Who is let in over the network: a token once, a credential again and again, and nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.backends.link.invitations import FileStore, Invitations, Verdict
from agentlab.base.entropy import SeededEntropy
from agentlab.base.secret import Secret
from agentlab.model.ids import SandboxId
from agentlab_guest.knock import Knock
from agentlab_guest.record import replaced

pytestmark = pytest.mark.anyio

SANDBOX = SandboxId("sb-abcdefgh")


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
async def invitations(tmp_path: Path, clock: Hands) -> Invitations:
    return await daemon(tmp_path, clock)


async def daemon(folder: Path, clock: Hands, seed: int = 0) -> Invitations:
    made = Invitations(FileStore(folder / "invitations"), clock, SeededEntropy(seed))
    await made.load()
    return made


def knock(token: Secret | None = None, credential: Secret | None = None, nonce: str = "mine") -> Knock:
    return Knock(
        protocol_min=1,
        protocol_max=1,
        version="1",
        sandbox=SANDBOX,
        nonce=nonce,
        token=token.reveal() if token else None,
        credential=credential.reveal() if credential else None,
    )


async def test_a_token_buys_a_credential_that_comes_in_again_and_again(invitations: Invitations) -> None:
    token = await invitations.invite(SANDBOX)

    bought = await invitations.admit(knock(token))
    assert bought.verdict is Verdict.REDEEM
    assert bought.credential is not None
    assert await invitations.accepted(SANDBOX, bought.credential)

    for _ in range(3):
        assert (await invitations.admit(knock(credential=bought.credential))).verdict is Verdict.ENTER


async def test_until_it_is_accepted_the_same_guest_may_redeem_again_and_the_last_credential_counts(
    invitations: Invitations,
) -> None:
    token = await invitations.invite(SANDBOX)
    first = (await invitations.admit(knock(token))).credential
    second = (await invitations.admit(knock(token))).credential

    assert first is not None
    assert second is not None
    assert not await invitations.accepted(SANDBOX, first)
    assert (await invitations.admit(knock(credential=first))).verdict is Verdict.UNKNOWN
    assert (await invitations.admit(knock(credential=second))).verdict is Verdict.ENTER


async def test_a_credential_that_is_used_has_been_accepted(invitations: Invitations) -> None:
    token = await invitations.invite(SANDBOX)
    bought = await invitations.admit(knock(token))
    await invitations.admit(knock(credential=bought.credential))

    assert (await invitations.admit(knock(token))).verdict is Verdict.SPENT


@pytest.mark.parametrize("nonce", ["mine", "another"])
async def test_a_spent_token_is_an_alarm_whoever_shows_it(invitations: Invitations, nonce: str) -> None:
    token = await invitations.invite(SANDBOX)
    bought = (await invitations.admit(knock(token))).credential
    assert bought is not None
    await invitations.accepted(SANDBOX, bought)

    assert (await invitations.admit(knock(token, nonce=nonce))).verdict is Verdict.SPENT


async def test_another_guest_with_a_redeemed_token_is_an_alarm_before_it_was_accepted(
    invitations: Invitations,
) -> None:
    token = await invitations.invite(SANDBOX)
    await invitations.admit(knock(token))

    assert (await invitations.admit(knock(token, nonce="another"))).verdict is Verdict.SPENT


async def test_a_wrong_token_and_a_wrong_credential_are_unknown_and_change_nothing(invitations: Invitations) -> None:
    token = await invitations.invite(SANDBOX)

    assert (await invitations.admit(knock(Secret("wrong")))).verdict is Verdict.UNKNOWN
    assert (await invitations.admit(knock(credential=Secret("wrong")))).verdict is Verdict.UNKNOWN
    assert (await invitations.admit(replaced(knock(token), sandbox="../sb-x"))).verdict is Verdict.UNKNOWN
    assert (await invitations.admit(knock(token))).verdict is Verdict.REDEEM


async def test_a_token_that_is_not_redeemed_in_time_is_expired(invitations: Invitations, clock: Hands) -> None:
    token = await invitations.invite(SANDBOX, ttl_s=60)
    clock.at += 61

    assert (await invitations.admit(knock(token))).verdict is Verdict.EXPIRED


async def test_a_credential_does_not_expire(invitations: Invitations, clock: Hands) -> None:
    token = await invitations.invite(SANDBOX, ttl_s=60)
    bought = await invitations.admit(knock(token))
    clock.at += 10**7

    assert (await invitations.admit(knock(credential=bought.credential))).verdict is Verdict.ENTER


async def test_a_new_invitation_makes_the_former_worthless(invitations: Invitations) -> None:
    former = await invitations.invite(SANDBOX)
    bought = await invitations.admit(knock(former))
    standing = invitations.standing(SANDBOX)

    await invitations.invite(SANDBOX)

    assert (await invitations.admit(knock(former))).verdict is Verdict.UNKNOWN
    assert (await invitations.admit(knock(credential=bought.credential))).verdict is Verdict.UNKNOWN
    assert invitations.standing(SANDBOX) != standing


async def test_a_revoked_sandbox_is_unknown(invitations: Invitations) -> None:
    token = await invitations.invite(SANDBOX)

    await invitations.revoke(SANDBOX)
    await invitations.revoke(SANDBOX)

    assert (await invitations.admit(knock(token))).verdict is Verdict.UNKNOWN
    assert SANDBOX not in invitations


async def test_the_next_daemon_knows_all_that_the_former_had_told_anybody(tmp_path: Path, clock: Hands) -> None:
    former = await daemon(tmp_path, clock)
    token = await former.invite(SANDBOX)
    first = (await (await daemon(tmp_path, clock, 1)).admit(knock(token))).credential
    assert first is not None

    third = await daemon(tmp_path, clock, 2)

    assert await third.accepted(SANDBOX, first)
    assert (await (await daemon(tmp_path, clock, 3)).admit(knock(token))).verdict is Verdict.SPENT
    assert (await (await daemon(tmp_path, clock, 4)).admit(knock(credential=first))).verdict is Verdict.ENTER


async def test_what_is_kept_lets_nobody_in(tmp_path: Path, clock: Hands) -> None:
    made = await daemon(tmp_path, clock)
    token = await made.invite(SANDBOX)
    bought = (await made.admit(knock(token))).credential
    assert bought is not None

    kept = (tmp_path / "invitations" / f"{SANDBOX}.json").read_text()

    assert token.reveal() not in kept
    assert bought.reveal() not in kept
    assert (tmp_path / "invitations").stat().st_mode & 0o777 == 0o700


async def test_a_damaged_file_lets_nobody_in_and_the_others_stay(tmp_path: Path, clock: Hands) -> None:
    made = await daemon(tmp_path, clock)
    token = await made.invite(SANDBOX)
    (tmp_path / "invitations" / "sb-22222222.json").write_text('{"sandbox": "sb-abcdefgh"')
    (tmp_path / "invitations" / "sb-33333333.json").write_bytes(
        (tmp_path / "invitations" / f"{SANDBOX}.json").read_bytes()
    )

    again = await daemon(tmp_path, clock)

    assert (await again.admit(knock(token))).verdict is Verdict.REDEEM
    assert SandboxId("sb-33333333") not in again
