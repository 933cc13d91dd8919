"""Grants: redeemed at most once (promise P5)."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.store.store_rows import NOW, digest, job, sandbox

from agentlab.model.grant import Grant
from agentlab.model.machine import SandboxState
from agentlab.store import grants, jobs, sandboxes
from agentlab.store.connection import Tx
from agentlab.store.database import Database

TOKEN, CREDENTIAL, OTHER = digest("token"), digest("credential"), digest("other")


def prepare(tx: Tx, **changes: object) -> Grant:
    values: dict[str, object] = {
        "token_hash": TOKEN,
        "sandbox": sandbox(1).id,
        "job": job(1).id,
        "rescue": False,
        "expires_at": NOW + 300,
    }
    grant = Grant(**{**values, **changes})  # type: ignore[arg-type]
    sandboxes.insert(tx, sandbox(1))
    jobs.insert(tx, job(1), b"")
    grants.insert(tx, grant)
    return grant


def test_a_grant_comes_back_with_every_field(tx: Tx) -> None:
    full = prepare(
        tx, rescue=True, redeemed_by="nonce", redeemed_at=NOW + 1, acknowledged=True, credential_hash=CREDENTIAL
    )

    assert grants.by_token(tx, TOKEN) == full
    assert grants.by_credential(tx, CREDENTIAL) == full
    assert grants.by_token(tx, OTHER) is None
    assert grants.by_credential(tx, OTHER) is None


def test_the_first_redemption_gives_the_credential(tx: Tx) -> None:
    prepare(tx)

    outcome, grant = grants.redeem(tx, TOKEN, "nonce", CREDENTIAL, NOW + 1)

    assert outcome == "redeemed"
    assert grant is not None
    assert (grant.redeemed_by, grant.redeemed_at, grant.credential_hash) == ("nonce", NOW + 1, CREDENTIAL)
    assert grants.by_credential(tx, CREDENTIAL) == grant


def test_the_same_guest_may_come_again_until_it_acknowledged_and_its_credential_is_replaced(tx: Tx) -> None:
    prepare(tx)
    grants.redeem(tx, TOKEN, "nonce", CREDENTIAL, NOW + 1)

    outcome, grant = grants.redeem(tx, TOKEN, "nonce", OTHER, NOW + 1000)

    assert outcome == "again"
    assert grant is not None
    assert (grant.redeemed_at, grant.credential_hash) == (NOW + 1, OTHER)
    assert grants.by_credential(tx, CREDENTIAL) is None


def test_another_guest_is_refused_and_changes_nothing(tx: Tx) -> None:
    prepare(tx)
    _, before = grants.redeem(tx, TOKEN, "nonce", CREDENTIAL, NOW + 1)

    assert grants.redeem(tx, TOKEN, "thief", OTHER, NOW + 2) == ("spent", before)
    assert grants.by_credential(tx, OTHER) is None


def test_after_the_acknowledgement_nobody_redeems(tx: Tx) -> None:
    prepare(tx)
    grants.redeem(tx, TOKEN, "nonce", CREDENTIAL, NOW + 1)

    grants.acknowledge(tx, CREDENTIAL)
    grants.acknowledge(tx, CREDENTIAL)

    outcome, grant = grants.redeem(tx, TOKEN, "nonce", OTHER, NOW + 2)
    assert outcome == "spent"
    assert grant is not None
    assert (grant.acknowledged, grant.credential_hash) == (True, CREDENTIAL)


def test_an_expired_or_unknown_grant_is_refused(tx: Tx) -> None:
    grant = prepare(tx)

    assert grants.redeem(tx, TOKEN, "nonce", CREDENTIAL, NOW + 300) == ("expired", grant)
    assert grants.redeem(tx, OTHER, "nonce", CREDENTIAL, NOW) == ("unknown", None)


def test_a_sandboxs_grants_and_credentials_end_when_revoked(tx: Tx) -> None:
    prepare(tx)
    grants.insert(tx, Grant(token_hash=OTHER, sandbox=sandbox(1).id, job=job(1).id, rescue=True, expires_at=NOW + 300))
    grants.redeem(tx, TOKEN, "nonce", CREDENTIAL, NOW)

    grants.revoke_sandbox(tx, sandbox(1).id)

    assert grants.by_credential(tx, CREDENTIAL) is None
    assert grants.redeem(tx, TOKEN, "nonce", CREDENTIAL, NOW)[0] == "spent"
    assert grants.redeem(tx, OTHER, "nonce", CREDENTIAL, NOW)[0] == "expired"


def test_pruning_spares_the_credential_of_a_living_sandbox(tx: Tx) -> None:
    prepare(tx)
    grants.redeem(tx, TOKEN, "nonce", CREDENTIAL, NOW)

    grants.prune(tx, NOW + 9999)
    assert grants.by_credential(tx, CREDENTIAL) is not None

    sandboxes.transition(tx, sandbox(1).id, SandboxState.DESTROYING, NOW)
    sandboxes.transition(tx, sandbox(1).id, SandboxState.DESTROYED, NOW)
    grants.prune(tx, NOW + 9999)
    assert grants.by_token(tx, TOKEN) is None


def test_pruning_removes_what_expired_unused(tx: Tx) -> None:
    prepare(tx)

    grants.prune(tx, NOW + 300)
    assert grants.by_token(tx, TOKEN) is not None

    grants.prune(tx, NOW + 301)
    assert grants.by_token(tx, TOKEN) is None


@pytest.mark.anyio
async def test_of_many_concurrent_guests_exactly_one_redeems(database: Database) -> None:
    await database.write(prepare)

    outcomes = await asyncio.gather(
        *(
            database.write(lambda tx, n=n: grants.redeem(tx, TOKEN, f"guest {n}", digest(str(n)), NOW)[0])
            for n in range(50)
        )
    )

    assert sorted(outcomes) == ["redeemed"] + ["spent"] * 49
