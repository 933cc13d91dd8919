#!/usr/bin/env bash
# Installs AgentLab on a Debian machine, as root: Debian packages, /opt/agentlab, the group, the service.
# Run it again after an update of the checkout; settings that exist are kept.
#   packaging/install.sh            install, or update
#   packaging/install.sh --qemu     the same, with what virtual machines need
#   packaging/install.sh --remove   take everything away except settings and state
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$here")
prefix=${PREFIX:-/opt/agentlab}
python=${PYTHON:-python3}
unset PYTHONDONTWRITEBYTECODE # without bytecode every start costs half a second

if [ "$(id -u)" -ne 0 ]; then
    echo "This installs for the whole machine: run it as root." >&2
    exit 1
fi

systemd() { [ -d /run/systemd/system ]; }

completions() {
    install -d /usr/share/bash-completion/completions /usr/share/zsh/vendor-completions /usr/share/fish/vendor_completions.d
    "$prefix/bin/agentlab" completion bash >/usr/share/bash-completion/completions/agentlab
    "$prefix/bin/agentlab" completion zsh >/usr/share/zsh/vendor-completions/_agentlab
    "$prefix/bin/agentlab" completion fish >/usr/share/fish/vendor_completions.d/agentlab.fish
}

remove() {
    if systemd; then systemctl disable --now agentlabd || true; fi
    rm -f /etc/systemd/system/agentlabd.service /usr/lib/sysusers.d/agentlab.conf /usr/lib/tmpfiles.d/agentlab.conf \
        /usr/local/bin/agentlab /usr/local/bin/agentlabd /usr/share/bash-completion/completions/agentlab \
        /usr/share/zsh/vendor-completions/_agentlab /usr/share/fish/vendor_completions.d/agentlab.fish
    rm -rf "$prefix"
    echo "Removed.  Kept: /etc/agentlab, /var/lib/agentlab, /var/cache/agentlab."
}

if [ "${1:-}" = --remove ]; then
    remove
    exit 0
fi

sections=(runtime)
if [ "${1:-}" = --qemu ]; then sections+=(qemu); fi
"$here/debian-packages" "${sections[@]}"
"$python" -c 'import ensurepip' 2>/dev/null || apt-get install -y --no-install-recommends python3-venv

# Built beside the old one and swapped in, so that a failed update leaves the old one working.
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
"$python" -m venv "$build/tools"
"$build/tools/bin/pip" install -qq --disable-pip-version-check --require-hashes -r "$top/requirements.lock"
(cd "$top" && "$build/tools/bin/python" -m hatchling build -t wheel -d "$build/wheel" >/dev/null 2>&1)

"$python" -m venv --clear "$prefix.new"
"$prefix.new/bin/pip" install -qq --disable-pip-version-check --require-hashes --compile -r "$here/requirements.lock"
"$prefix.new/bin/pip" install -qq --disable-pip-version-check --no-deps --no-index --compile "$build"/wheel/*.whl
# Scripts name their interpreter by its path.
grep -rlIZ "$prefix.new" "$prefix.new/bin" "$prefix.new/pyvenv.cfg" | xargs -0 sed -i "s|$prefix.new|$prefix|g"
rm -rf "$prefix.old"
if [ -e "$prefix" ]; then mv "$prefix" "$prefix.old"; fi
mv "$prefix.new" "$prefix"
rm -rf "$prefix.old"
install -d "$prefix/share"
cp -r "$top/docs" "$prefix/share/docs"

getent group agentlab >/dev/null || groupadd --system agentlab
install -d /etc/agentlab/profiles /etc/agentlab/templates
[ -e /etc/agentlab/agentlabd.yaml ] || install -m 0644 "$here/agentlabd.yaml" /etc/agentlab/agentlabd.yaml
install -D -m 0644 "$here/agentlab.sysusers" /usr/lib/sysusers.d/agentlab.conf
install -D -m 0644 "$here/agentlab.tmpfiles" /usr/lib/tmpfiles.d/agentlab.conf
install -D -m 0644 "$here/agentlabd.service" /etc/systemd/system/agentlabd.service
ln -sf "$prefix/bin/agentlab" "$prefix/bin/agentlabd" /usr/local/bin/
completions

agentlabd --check
if systemd; then
    systemctl daemon-reload
    systemctl enable agentlabd
    systemctl restart agentlabd
    echo "Installed; the service runs.  Next: agentlab template build base"
else
    echo "Installed.  systemd does not run here: start the daemon with \`agentlab up\`."
fi
echo "Let others use it: usermod -aG agentlab NAME"
