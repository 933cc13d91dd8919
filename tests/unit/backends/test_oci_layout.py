"""What lies in our folders without being ours stays there (P1)."""

from __future__ import annotations

from pathlib import Path

from agentlab.backends.oci.layout import Layout
from agentlab.model.ids import InstallationId, SandboxId
from agentlab.model.sandbox import Mark

OURS = InstallationId("aaaaaaaa")


def layout(tmp_path: Path) -> Layout:
    made = Layout(installation=OURS, state=tmp_path / "state", run=tmp_path / "run")
    made.prepare()
    return made


def test_p1_hidden_folders_that_are_not_ours_survive_a_start(tmp_path: Path) -> None:
    sandboxes = layout(tmp_path).state / "sandboxes"
    foreign = [sandboxes / name for name in (".snapshots", ".trash.gone", ".git", "notes")]
    for folder in foreign:
        folder.mkdir()
        (folder / "keep").write_text("kept")

    layout(tmp_path)

    assert all((folder / "keep").read_text() == "kept" for folder in foreign)


def test_what_a_crash_left_half_made_or_half_removed_goes_at_the_next_start(tmp_path: Path) -> None:
    sandboxes = layout(tmp_path).state / "sandboxes"
    for name in (".sb-aaaaaaaa.new", ".sb-aaaaaaaa.gone"):
        (sandboxes / name).mkdir()
        (sandboxes / name / "disk.img").touch()

    layout(tmp_path)

    assert list(sandboxes.iterdir()) == []


def test_p1_a_sandbox_of_another_installation_is_not_among_ours(tmp_path: Path) -> None:
    made = layout(tmp_path)
    mine = Mark(installation=OURS, sandbox=SandboxId("sb-aaaaaaaa"), nonce="n")
    theirs = Mark(installation=InstallationId("bbbbbbbb"), sandbox=SandboxId("sb-bbbbbbbb"), nonce="n")
    made.write_mark(mine)
    made.write_mark(theirs)

    assert list(made.marks()) == [mine]
