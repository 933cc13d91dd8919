"""The person before the terminal, or the program before the pipe, who sets something up."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Protocol

import click

from agentlab.base.secret import Secret
from agentlab.base.text import printable
from agentlab.errors import Invalid

PASSWORD_CHARACTERS_MAX = 4096  # of the line that is read from standard input


class Person(Protocol):
    """Who is told and asked."""

    def say(self, text: str = "") -> None:
        """A line for people."""

    def secret(self, what: str) -> Secret:
        """A password; Invalid if none is given."""

    def confirm(self, question: str, otherwise: str) -> None:
        """Returns for yes; click.Abort for no.  Invalid with `otherwise`, what to give, if nobody can be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """Standard streams.  Remarks and questions go to standard error, so that standard output is the result's."""

    quiet: bool = False  # for programs: nothing is said beside the result

    def say(self, text: str = "") -> None:
        """On standard error."""
        if not self.quiet:
            click.echo(printable(text), err=True)

    def secret(self, what: str) -> Secret:
        """Without showing it at a terminal; otherwise the first line of standard input."""
        if sys.stdin.isatty():
            return Secret(click.prompt(what, hide_input=True, err=True))
        given = sys.stdin.readline(PASSWORD_CHARACTERS_MAX).rstrip("\r\n")
        if not given:
            raise Invalid(cause=f"{what}: standard input is empty; write it there, or run this at a terminal")
        return Secret(given)

    def confirm(self, question: str, otherwise: str) -> None:
        """Asks at a terminal."""
        if not sys.stdin.isatty():
            raise Invalid(cause=f"nobody can be asked ({question}); {otherwise}")
        click.confirm(question, abort=True, err=True)
