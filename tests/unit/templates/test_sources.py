"""apt sources, and what a build may see of the host."""

from __future__ import annotations

from pathlib import Path

from agentlab.templates.cache import build_environment
from agentlab.templates.sources import from_mirror, of_machine, reaching

DEB822 = """\
Types: deb deb-src
# a remark
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://vendor.example/node
Suites: nodistro
Components: main
"""

LIST = """\
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian-security bookworm-security main contrib
# deb http://mirror.example/debian bookworm main
deb-src http://mirror.example/debian bookworm main
deb http://vendor.example/sdk cloud-bookworm main
"""


def machine(tmp_path: Path) -> Path:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "debian.sources").write_text(DEB822)
    (tmp_path / "sources.list").write_text(LIST)
    (parts / "ignored.save").write_text(LIST)
    return tmp_path


def test_only_what_serves_the_suite_is_taken_from_the_machine(tmp_path: Path) -> None:
    found = of_machine("bookworm", machine(tmp_path))

    assert found == (
        "Types: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\n"
        "Components: main contrib\nArchitectures: amd64\nSigned-By: /k.gpg\n"
        "\n"
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def test_a_suite_that_the_machine_does_not_serve_gives_nothing(tmp_path: Path) -> None:
    assert of_machine("trixie", machine(tmp_path)) == ""


def test_a_disabled_source_is_not_taken(tmp_path: Path) -> None:
    etc = machine(tmp_path)
    (etc / "sources.list").unlink()
    (etc / "sources.list.d" / "debian.sources").write_text(f"Enabled: no\n{DEB822}")

    assert of_machine("bookworm", etc) == ""


def test_a_named_mirror_serves_the_main_component() -> None:
    assert from_mirror("http://mirror.example/debian", "bookworm").splitlines()[:4] == [
        "Types: deb",
        "URIs: http://mirror.example/debian",
        "Suites: bookworm",
        "Components: main",
    ]


def test_how_mirrors_are_reached_is_kept_and_the_rest_of_apts_configuration_is_not() -> None:
    dump = (
        'APT::Architecture "amd64";\nAcquire::http::Proxy "http://proxy.example:3128";\nAcquire::https "";\n'
        'Acquire::Check-Date "false";\nDPkg::Post-Invoke:: "rm -rf /";\nAcquire::GzipIndexes "true";\n'
    )

    assert reaching(dump) == 'Acquire::http::Proxy "http://proxy.example:3128";\nAcquire::Check-Date "false";\n'


def test_a_build_step_sees_registries_and_proxies_and_no_secret_of_the_host() -> None:
    host = {
        "ANTHROPIC_API_KEY": "sk-1",
        "AWS_SECRET_ACCESS_KEY": "x",
        "LD_PRELOAD": "/x.so",
        "https_proxy": "http://proxy.example:3128",
        "PIP_INDEX_URL": "https://index.example/simple",
        "PIP_FIND_LINKS": "/opt/wheels",
        "npm_config_registry": "https://registry.example",
        "npm_config_cache": "/root/.npm",
        "NPM_CONFIG_STRICT_SSL": "true",
    }

    found = build_environment(host, "/run/ca.pem")

    assert found["https_proxy"] == "http://proxy.example:3128"
    assert found["PIP_INDEX_URL"] == "https://index.example/simple"
    assert found["npm_config_registry"] == "https://registry.example"
    assert found["NODE_EXTRA_CA_CERTS"] == found["PIP_CERT"] == "/run/ca.pem"
    hidden = {"ANTHROPIC_API_KEY", "AWS_SECRET_ACCESS_KEY", "LD_PRELOAD", "PIP_FIND_LINKS", "npm_config_cache"}
    assert not hidden & set(found)
