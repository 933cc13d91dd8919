"""Where the files lie that AgentLab ships: profiles, recipes, the sample."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
_CHECKOUT = _PACKAGE.parent.parent
_FOLDERS = {"profiles": "profiles", "templates": "templates", "sample": "examples/sample"}


def shipped(kind: str) -> Path:
    """The folder of what is shipped of this kind: `profiles`, `templates` or `sample`.

    An installed wheel carries them inside the package, a checkout keeps them at its top.
    Raises FileNotFoundError if neither has it, KeyError for another kind.
    """
    installed = _PACKAGE / "shipped" / kind
    checkout = _CHECKOUT / _FOLDERS[kind]
    for folder in (installed, checkout):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"neither {installed} nor {checkout} exists: this installation of AgentLab is incomplete")
