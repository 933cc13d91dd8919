"""What `pveum`, `pvesh` and `pvesm` would do with a line of ours: the calls of the API that stand behind it.

Only what our lines use.  So a command that is shown to people can be run in a test.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from agentlab.backends.proxmox import encode
from agentlab.backends.proxmox.setup_steps import Call

# Words → method, path, and the names of the positional arguments that are in neither path nor options.
COMMANDS: Mapping[tuple[str, ...], tuple[str, str, tuple[str, ...]]] = {
    ("pveum", "pool", "add"): ("POST", "/pools", ("poolid",)),
    ("pveum", "role", "add"): ("POST", "/access/roles", ("roleid",)),
    ("pveum", "role", "modify"): ("PUT", "/access/roles/{}", ()),
    ("pveum", "user", "add"): ("POST", "/access/users", ("userid",)),
    ("pveum", "user", "modify"): ("PUT", "/access/users/{}", ()),
    ("pveum", "user", "token", "add"): ("POST", "/access/users/{}/token/{}", ()),
    ("pveum", "user", "token", "modify"): ("PUT", "/access/users/{}/token/{}", ()),
    ("pveum", "user", "token", "delete"): ("DELETE", "/access/users/{}/token/{}", ()),
    ("pveum", "acl", "modify"): ("PUT", "/access/acl", ("path",)),
    ("pvesm", "set"): ("PUT", "/storage/{}", ()),
    ("pvesh", "set", "/cluster/firewall/options"): ("PUT", "/cluster/firewall/options", ()),
    ("pvesh", "get", "/storage/local"): ("GET", "/storage/local", ()),
}


def calls(lines: Sequence[str]) -> list[Call]:
    """The calls of all lines, in order; remarks are passed over.  KeyError for a command that is not known."""
    found = []
    for line in lines:
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            if words:
                found.append(_call(words))
    return found


def _call(words: list[str]) -> Call:
    command = max((each for each in COMMANDS if tuple(words[: len(each)]) == each), key=len)
    method, path, names = COMMANDS[command]
    rest = words[len(command) :]
    at = next((index for index, word in enumerate(rest) if word.startswith("--")), len(rest))
    positional, options = rest[:at], rest[at:]
    params = {name.removeprefix("--"): value for name, value in zip(options[::2], options[1::2], strict=True)}
    if "privs" in params:
        params["privs"] = params["privs"].replace(" ", ",")
    slots = path.count("{}")
    quoted = [encode.path(each).removeprefix("/") for each in positional[:slots]]
    params |= dict(zip(names, positional[slots:], strict=True))
    return Call(method=method, path=path.format(*quoted), params=params)
