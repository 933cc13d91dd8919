"""The agents that a job can run, as data."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class PromptBy(enum.StrEnum):
    """How the task reaches the program."""

    ARGUMENT = "argument"  # appended to the command line
    FILE = "file"  # `{task_file}` in the command line is replaced by its path
    STDIN = "stdin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One agent program: how it is installed, started without a terminal, and read."""

    name: str
    title: str
    argv: tuple[str, ...]
    prompt: PromptBy
    transcript: str  # text, claude-stream-json, codex-json, opencode-json
    key_names: tuple[str, ...] = ()  # environment variables that carry its provider key; any one suffices
    env: tuple[tuple[str, str], ...] = ()
    npm: str | None = None  # package and pinned version that a template recipe installs
    template: str = "base"  # the shipped template that contains it


AGENTS: dict[str, Agent] = {
    agent.name: agent
    for agent in (
        Agent(
            name="shell",
            title="The task itself, run as a script by bash",
            argv=("bash", "-eu", "{task_file}"),
            prompt=PromptBy.FILE,
            transcript="text",
        ),
        Agent(
            name="claude",
            title="Claude Code",
            argv=(
                "claude",
                "-p",
                "--output-format",
                "stream-json",
                "--verbose",
                "--permission-mode",
                "bypassPermissions",
            ),
            prompt=PromptBy.STDIN,
            transcript="claude-stream-json",
            key_names=("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
            # IS_SANDBOX lifts the refusal to run without permission checks as root.
            env=(("IS_SANDBOX", "1"), ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"), ("DISABLE_AUTOUPDATER", "1")),
            npm="@anthropic-ai/claude-code@2.1.330",
            template="agents",
        ),
        Agent(
            name="codex",
            title="Codex CLI",
            argv=(
                "codex",
                "exec",
                "--json",
                "--dangerously-bypass-approvals-and-sandbox",
                "--skip-git-repo-check",
                "-c",
                "analytics.enabled=false",
                "--disable",
                "plugins",
                "-",
            ),
            prompt=PromptBy.STDIN,
            transcript="codex-json",
            key_names=("CODEX_API_KEY", "OPENAI_API_KEY"),
            npm="@openai/codex@0.169.0",
            template="agents",
        ),
        Agent(
            name="opencode",
            title="OpenCode",
            argv=("opencode", "run", "--format", "json", "--auto"),
            prompt=PromptBy.ARGUMENT,
            transcript="opencode-json",
            key_names=("ANTHROPIC_API_KEY", "OPENAI_API_KEY"),
            env=(
                ("OPENCODE_DISABLE_AUTOUPDATE", "1"),
                ("OPENCODE_DISABLE_MODELS_FETCH", "1"),
                ("OPENCODE_DISABLE_LSP_DOWNLOAD", "1"),
            ),
            npm="opencode-ai@1.18.33",
            template="agents",
        ),
    )
}
