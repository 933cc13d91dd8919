"""What is committed: no address of this or that machine, no loose end, no dead link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.tidy.sources import ROOT, committed

# Spelled in parts, so that this file does not name them either.
REGISTRIES = (
    ("pypi", "org"), ("files.pythonhosted", "org"), ("registry.npmjs", "org"), ("deb.debian", "org"),
    ("security.debian", "org"), ("crates", "io"), ("static.crates", "io"), ("proxy.golang", "org"),
    ("docker", "io"), ("ghcr", "io"), ("rubygems", "org"), ("repo1.maven", "org"),
)  # fmt: skip
PLACES = (("/work", "main"), ("/work", "shared"), ("/work", ".library"), ("/root", ".pyenv"), ("/opt", "pypi"))
LOOSE_END = re.compile("|".join((r"\bTO" + "DO", r"\bFIX" + r"ME", r"\bX" + r"XX\b", "not implemented" + " yet")))
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)

SHIPPED = (
    "profiles/yolo-ephemeral.yaml", "profiles/yolo-workspace.yaml", "profiles/interactive-dev.yaml",
    "templates/base.yaml", "templates/agents.yaml", "examples/sample/README.md", "examples/sample-task.sh",
    "packaging/agentlabd.service", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE",
    "docs/start.md", "docs/internals/architecture.md", "requirements.lock", "packaging/requirements.lock",
)  # fmt: skip


def _texts(*suffixes: str) -> list[tuple[Path, str]]:
    found = []
    for path in committed():
        if suffixes and path.suffix not in suffixes:
            continue
        try:
            found.append((path.relative_to(ROOT), path.read_text()))
        except UnicodeDecodeError:
            continue
    return found


@pytest.mark.parametrize("parts", REGISTRIES, ids="-".join)
def test_no_package_registry_is_named(parts: tuple[str, str]) -> None:
    host = re.compile(r"(?<![\w.-])" + re.escape(".".join(parts)) + r"(?![\w-])")

    assert [str(path) for path, text in _texts() if host.search(text)] == []


@pytest.mark.parametrize("parts", PLACES, ids="-".join)
def test_no_folder_of_somebodys_machine_is_named(parts: tuple[str, str]) -> None:
    assert [str(path) for path, text in _texts() if "/".join(parts) in text] == []


def test_there_are_no_loose_ends() -> None:
    assert [str(path) for path, text in _texts(".py", ".md", ".sh", ".yaml", ".toml") if LOOSE_END.search(text)] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_what_we_ship_is_there(name: str) -> None:
    assert (ROOT / name).is_file()


def test_links_between_the_pages_lead_somewhere() -> None:
    dead = [
        f"{path}: {target}"
        for path, text in _texts(".md")
        for target in LINK.findall(FENCE.sub("", text))
        if not target.startswith(("http://", "https://", "mailto:")) and not _exists(ROOT / path, target)
    ]

    assert dead == []


def test_locked_packages_have_hashes_and_no_address() -> None:
    for name in ("requirements.lock", "packaging/requirements.lock"):
        text = (ROOT / name).read_text()
        packages = re.findall(r"^[a-z0-9][\w.-]*==.*$", text, re.M)

        assert packages
        assert "://" not in text
        assert [each for each in packages if not each.endswith("\\")] == []


def test_every_package_that_a_remedy_names_is_among_those_that_setup_installs() -> None:
    lines = (ROOT / "packaging/debian-packages.txt").read_text().splitlines()
    listed = {line.split()[0] for line in lines if line and line[0] not in "#["}

    named = {
        package
        for path, text in _texts(".py")
        if path.parts[0] == "src"
        for package in re.findall(r"apt-get install ([a-z][a-z0-9.+-]+)", text)
    }

    assert "nftables" in named  # the pattern still sees them
    assert named - listed == set()


def test_every_direct_dependency_is_locked() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {re.split(r"[><=~! \[]", each)[0].lower().replace(".", "-") for each in wanted}

    locked = set(re.findall(r"^([a-z0-9][\w.-]*)==", (ROOT / "requirements.lock").read_text(), re.M))

    assert names - locked == set()


def _exists(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = page if not path else (page.parent / path)
    if not file.exists():
        return False
    if not anchor or file.suffix != ".md":
        return True
    headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
    return anchor in {_slug(each) for each in headings}


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")
