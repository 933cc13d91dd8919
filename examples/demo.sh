#!/usr/bin/env bash
# The main job, start to end, with a daemon of its own in .demo/.  `make demo` installs what is needed and runs this.
# A second run finds the template in .demo/ and takes seconds.  AGENT=claude (or codex, opencode) uses that agent.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$here")
home=${DEMO_DIR:-$top/.demo}
agent=${AGENT:-shell}
scratch=$(mktemp -d)
installation=
export AGENTLAB_DIR=$home   # which daemon every `agentlab` below means
unset AGENTLAB_SOCKET

say() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }
run() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }
tests() { (cd "$1" && PYTHONPATH=src python3 -B -m unittest discover -s tests 2>&1 | tail -n 3); }

down() {
    if [ -S "$home/run/agentlabd.sock" ]; then
        run agentlab down --all || true
    fi
    rm -rf "$scratch"
}

verify() {
    say "What is left on this machine?"
    if [ ! -e "$home" ]; then
        return
    fi
    if ! python3 "$here/left_behind.py" "$home" $installation; then
        echo "This is left behind, and should not be." >&2
        return 1
    fi
    rm -rf "$home/run"
    echo "No process, mount, network link, firewall table, control group or sandbox directory.  Kept: $(
        du -sh "$home" | cut -f1) in $home, so that the next run need not build the template again."
}

failed() {
    status=$?
    trap - EXIT INT TERM
    [ "$status" -ne 0 ] || status=130
    say "The demo did not finish; cleaning up"
    tail -n 20 "$home/state/agentlabd.log" 2>/dev/null | cut -c1-300 || true
    down
    verify || true
    exit "$status"
}
trap failed EXIT INT TERM

if [ "$(id -u)" -ne 0 ]; then
    echo "The demo makes real sandboxes, which needs root here: sudo make demo" >&2
    trap - EXIT
    exit 1
fi

case $agent in
shell)
    template=base task=@$here/sample-task.sh env=()
    if [ -n "${ANTHROPIC_API_KEY:-}${OPENAI_API_KEY:-}" ]; then
        echo "The agent is \`shell\`: its task is a script.  A provider key is set; AGENT=claude would use it."
    else
        echo "No ANTHROPIC_API_KEY or the like is set, so the agent is \`shell\`: its task is a script."
    fi
    ;;
claude) template=agents task="A unit test fails.  Find the defect behind it, repair it, run all tests, and commit." env=(--env ANTHROPIC_API_KEY) ;;
*) template=agents task="A unit test fails.  Find the defect behind it, repair it, run all tests, and commit." env=(--env OPENAI_API_KEY) ;;
esac

say "1. A repository with a failing test"
cp -r "$here/sample" "$scratch/sample"
(cd "$scratch/sample" && git init -q -b main && git add -A &&
    git -c user.name=Demo -c user.email=demo@localhost commit -q -m "wordtally 0.3.0")
git clone -q "$scratch/sample" "$scratch/clone"
if tests "$scratch/clone"; then
    echo "The sample's defect is gone already?" >&2
    exit 1
fi

say "2. A daemon in a directory of its own"
run agentlab up
installation=$(agentlab status --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["facts"]["installation"])')

say "3. The template that sandboxes are cloned from (the first time takes a minute or two)"
run agentlab template build "$template"

say "4. The job: sandbox, agent, work back, sandbox away"
run agentlab job run --repo "$scratch/sample" --agent "$agent" --task "$task" "${env[@]}"
job=$(agentlab job list --limit 1 --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["id"])')

say "5. What it changed"
run agentlab job diff "$job" | cat

say "6. The work as a branch in a clone"
run agentlab job apply "$job" --to "$scratch/clone"
run git -C "$scratch/clone" --no-pager log --oneline --graph --all
git -C "$scratch/clone" checkout -q "agentlab/$job"
tests "$scratch/clone"

say "7. Stop the daemon, and look for what is left"
trap - EXIT INT TERM
down
verify
