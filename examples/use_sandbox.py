"""Make a sandbox, run commands in it, and take it away: use_sandbox.py COMMAND..."""

import base64
import sys

from agentlab import Client


def main() -> int:
    """The exit status is that of the command."""
    with Client() as client:
        sandbox = client.new_sandbox(profile="yolo-ephemeral", network="off", ttl_s=600)
        try:
            print(f"{sandbox.id} is {sandbox.state}", file=sys.stderr)
            done = client.sandboxes.execute(sandbox.id, argv=sys.argv[1:] or ["uname", "-a"])
            sys.stdout.buffer.write(base64.b64decode(done.stdout_b64))
            sys.stderr.buffer.write(base64.b64decode(done.stderr_b64))
            return 1 if done.exit_code is None else done.exit_code
        finally:
            client.sandboxes.destroy(sandbox.id)


if __name__ == "__main__":
    sys.exit(main())
