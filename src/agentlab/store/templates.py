"""Templates: builds of recipes, the newest ready one of a name being the one that sandboxes are made from."""

from __future__ import annotations

import builtins
import json
from typing import Any

from agentlab.model.ids import Digest, is_digest
from agentlab.model.template import Template
from agentlab.store import rows
from agentlab.store.connection import Tx

STATES = ("building", "ready", "failed")

_COLUMNS = "name, digest, recipe_digest, state, bytes_count, built_ms, build_ms, packages, step, failure"

PUT = f"INSERT OR REPLACE INTO template ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def put(tx: Tx, template: Template) -> None:
    """Record a build as it stands now; the row with the same digest is replaced and counts as the newest."""
    assert is_digest(template.digest), f"{template.digest!r} is not a digest"
    assert template.state in STATES, template.state
    tx.execute(
        PUT,
        (
            template.name,
            template.digest,
            template.recipe_digest,
            template.state,
            template.bytes_count,
            rows.ms_or_none(template.built_at),
            rows.ms_or_none(template.build_s),
            json.dumps(template.packages, separators=(",", ":")),
            template.step,
            rows.failure_json(template.failure),
        ),
    )


GET = f"""
SELECT {_COLUMNS} FROM template WHERE name = ?
 ORDER BY state = 'ready' DESC, iif(state = 'ready', built_ms, 0) DESC, row DESC LIMIT 1"""


def get(tx: Tx, name: str) -> Template | None:
    """The newest ready build of `name`; the newest in any state if none is ready; None if there is none at all."""
    row = tx.execute(GET, (name,)).fetchone()
    return None if row is None else _template(row)


BY_DIGEST = f"SELECT {_COLUMNS} FROM template WHERE digest = ?"


def by_digest(tx: Tx, digest: str) -> Template | None:
    """This very build, or None."""
    row = tx.execute(BY_DIGEST, (digest,)).fetchone()
    return None if row is None else _template(row)


LIST = f"SELECT {_COLUMNS} FROM template ORDER BY name, row"


def list(tx: Tx) -> builtins.list[Template]:
    """All builds, by name and then oldest first."""
    return [_template(row) for row in tx.execute(LIST)]


REMOVE = "DELETE FROM template WHERE digest = ?"


def remove(tx: Tx, digest: str) -> None:
    """Forget a build.  Absence is success."""
    tx.execute(REMOVE, (digest,))


def _template(row: tuple[Any, ...]) -> Template:
    name, digest, recipe_digest, state, bytes_count, built_ms, build_ms, packages, step, failure = row
    assert is_digest(digest), f"row of template {name!r} is damaged"
    assert state in STATES, f"row of template {name!r} is damaged"
    return Template(
        name=name,
        digest=Digest(digest),
        recipe_digest=Digest(recipe_digest),
        state=state,
        bytes_count=bytes_count,
        built_at=rows.instant_or_none(built_ms),
        build_s=rows.instant_or_none(build_ms),
        packages=tuple((package, version) for package, version in json.loads(packages)),
        step=step,
        failure=rows.failure(failure),
    )
