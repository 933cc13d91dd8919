"""The OpenAPI document is the one that is kept in the repository."""

from __future__ import annotations

import json
import os
from pathlib import Path

from agentlab.wire.openapi import document
from agentlab.wire.routes import ROUTES

GOLDEN = Path(__file__).parents[2] / "golden" / "openapi.json"


def test_the_document_is_the_golden_one() -> None:
    text = json.dumps(document(), indent=1, sort_keys=True) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert GOLDEN.read_text() == text, "run it again with UPDATE_GOLDEN=1 if the change is meant, and look at the diff"


def test_the_document_has_every_route_and_no_other() -> None:
    found = {
        operation["operationId"]: (method, path)
        for path, operations in document()["paths"].items()
        for method, operation in operations.items()
    }
    assert found.keys() == ROUTES.keys()


def test_every_reference_in_the_document_leads_somewhere() -> None:
    whole = document()
    schemas = whole["components"]["schemas"]
    text = json.dumps(whole)
    names = {each.split('"')[0] for each in text.split("#/components/schemas/")[1:]}
    assert names <= schemas.keys()
