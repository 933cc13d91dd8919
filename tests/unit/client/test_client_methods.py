"""The SDK's typed methods are those of the route table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import agentlab
from agentlab.client import async_methods, methods
from agentlab.client.generate import render
from agentlab.wire.routes import ROUTES


@pytest.mark.parametrize(("module", "asynchronous"), [(methods, False), (async_methods, True)])
def test_the_generated_methods_are_up_to_date(module: object, asynchronous: bool) -> None:
    path = Path(str(getattr(module, "__file__", "")))
    assert path.read_text() == render(asynchronous=asynchronous), "run: python -m agentlab.client.generate"


@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_every_plain_route_is_an_attribute_path_of_the_client(kind: str) -> None:
    client = getattr(agentlab, kind)("/nowhere")
    for route in ROUTES.values():
        if route.stream in ("sse", "websocket") or route.upload or route.method == "HEAD":
            continue
        noun, verb = route.name.split(".")
        assert callable(getattr(getattr(client, noun), verb))


def test_importing_the_package_does_not_import_the_sdk() -> None:
    code = "import agentlab, sys; assert not [m for m in sys.modules if m.startswith(('pydantic', 'http', 'asyncio'))]"
    subprocess.run([sys.executable, "-c", code], check=True)
