"""What is concluded from what the machine shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlab.backends.qemu import probe

PLAIN = "processor : 0\nflags\t\t: fpu sse2 hypervisor\n"
ABLE = "processor : 0\nflags\t\t: fpu vmx sse2\n"


@pytest.mark.parametrize(
    ("text", "version", "release"),
    [
        (
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright\n",
            "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)",
            (7, 2),
        ),
        ("QEMU emulator version 10.0.2\n", "10.0.2", (10, 0)),
        ("something else", "of unknown version", (0,)),
    ],
)
def test_a_version_is_the_whole_of_what_qemu_says(text: str, version: str, release: tuple[int, ...]) -> None:
    assert probe.version_in(text) == (version, release)


def test_without_vmx_or_svm_it_is_emulated_and_that_is_said_even_if_kvm_opens(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()

    accelerator, finding = probe.accelerator("auto", PLAIN, device)

    assert accelerator == "tcg"
    assert finding.ok
    assert finding.detail == ("tcg: emulated, about 10 times slower, because the processor shows neither vmx nor svm")


def test_kvm_is_used_where_the_processor_has_it_and_the_device_opens(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()

    assert probe.accelerator("auto", ABLE, device)[0] == "kvm"


def test_a_device_that_does_not_open_is_said(tmp_path: Path) -> None:
    accelerator, finding = probe.accelerator("auto", ABLE, tmp_path / "kvm")

    assert accelerator == "tcg"
    assert "cannot be opened: No such file or directory" in finding.detail


def test_kvm_that_was_asked_for_and_is_not_there_is_fatal_and_never_emulated(tmp_path: Path) -> None:
    accelerator, finding = probe.accelerator("kvm", PLAIN, tmp_path / "kvm")

    assert accelerator == "kvm"
    assert (finding.ok, finding.fatal) == (False, True)
    assert "accelerator to auto" in finding.remedy


def test_emulation_that_was_asked_for_is_used_beside_a_working_kvm(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()

    assert probe.accelerator("tcg", ABLE, device)[0] == "tcg"
