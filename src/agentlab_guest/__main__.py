"""`python3 -I -S guest.pyz --link unix:PATH|tcp:HOST:PORT`: the grant comes as one line on standard input."""

from __future__ import annotations

import os
import signal
import sys

from agentlab_guest import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agentlab_guest.runner import Options

USAGE = """usage: guest.pyz --link ADDR [--run-dir DIR] [--state-dir DIR] [--own-pids | --own-cgroup]
       guest.pyz --resident DEVICE [--invitation FILE] [--stand-in] [--run-dir DIR]
       guest.pyz --version"""
GRANT_BYTES_MAX = 4096
EXIT_USAGE, EXIT_REFUSED, EXIT_IN_USE, EXIT_NO_WAY = 2, 3, 4, 5


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0 report acknowledged, 2 usage, 3 refused by the daemon, 4 another guest here, 5 no way home."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        sys.stdout.write(f"agentlab-guest {__version__}\n")
        return 0
    if arguments[:1] == ["--resident"]:
        return _resident(arguments[1:])
    return _runner(arguments)


def _resident(arguments: list[str]) -> int:
    device, stand_in, given = "", False, {"--run-dir": "/run/agentlab"}
    pending = list(arguments)
    while pending:
        word = pending.pop(0)
        if word == "--stand-in":
            stand_in = True
        elif word in ("--invitation", "--run-dir") and pending:
            given[word] = pending.pop(0)
        elif not device and not word.startswith("-"):
            device = word
        else:
            return _fail(EXIT_USAGE, USAGE)
    if not device:
        return _fail(EXIT_USAGE, USAGE)
    # Of all that the program is, only this stays in the memory of every VM.
    from agentlab_guest.home import NoWay
    from agentlab_guest.identity import StepFailed
    from agentlab_guest.resident import run

    try:
        run(device, given.get("--invitation"), given["--run-dir"], stand_in=stand_in)
    except (NoWay, StepFailed) as error:
        return _fail(EXIT_NO_WAY, str(error))
    return 0


def _runner(arguments: list[str]) -> int:
    from agentlab_guest.link import LinkRefused
    from agentlab_guest.runner import Runner
    from agentlab_guest.state import AnotherGuest, RunDirectory
    from agentlab_guest.strict import Malformed

    try:
        options = _options(arguments)
    except ValueError as error:
        return _fail(EXIT_USAGE, f"{error}\n{USAGE}")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal or launcher may go; the job stays
    os.umask(0o022)
    grant = _read_line(0) or None
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        session = RunDirectory(options.run_dir).load()
        if grant is None and session is None:
            return _fail(EXIT_USAGE, f"no grant on standard input, and no session in {options.run_dir}")
        return Runner(options, grant, session).run()
    except LinkRefused as error:
        return _fail(EXIT_REFUSED, f"the daemon refused: {error}")
    except Malformed as error:
        return _fail(EXIT_REFUSED, f"the bootstrap cannot be understood: {error}")
    except AnotherGuest as error:
        return _fail(EXIT_IN_USE, str(error))


def _read_line(descriptor: int) -> str:
    raw = b""
    while b"\n" not in raw and len(raw) < GRANT_BYTES_MAX and (more := os.read(descriptor, GRANT_BYTES_MAX)):
        raw += more
    return raw.partition(b"\n")[0].decode("ascii", "replace").strip()


def _options(arguments: list[str]) -> Options:
    from agentlab_guest.link import parse_address
    from agentlab_guest.runner import Options

    given = {"--run-dir": "/run/agentlab", "--state-dir": "/var/lib/agentlab-guest"}
    own, pending = "", list(arguments)
    while pending:
        name = pending.pop(0)
        if name in ("--own-pids", "--own-cgroup"):
            own = name.removeprefix("--own-")
        elif name in ("--link", "--run-dir", "--state-dir") and pending:
            given[name] = pending.pop(0)
        else:
            raise ValueError(f"{name}: unknown, or its value is missing")
    if "--link" not in given:
        raise ValueError("--link is missing")
    parse_address(given["--link"])
    return Options(
        link=given["--link"],
        run_dir=os.path.abspath(given["--run-dir"]),
        state_dir=os.path.abspath(given["--state-dir"]),
        own=own,
    )


def _fail(status: int, message: str) -> int:
    sys.stderr.write(f"agentlab-guest: {message}\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
