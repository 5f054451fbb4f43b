#!/usr/bin/env bash
# Installs what `make test` needs beyond a Rust toolchain. Quiet when there is nothing to do. Programs of third parties
# are built into $ION_TEST_CACHE (default: ~/.cache/ion-test), outside this repository.
set -euo pipefail

"$(dirname "$0")/setup-build.sh"

cache=${ION_TEST_CACHE:-$HOME/.cache/ion-test}
root=; [ "$(id -u)" = 0 ] || root=sudo

missing=()
for pair in bash:bash dash:dash perl:perl python3:python3 setfattr:attr fusermount3:fuse3 unshare:util-linux; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || { echo "$0: these are needed: ${missing[*]}" >&2; exit 1; }
    echo "installing ${missing[*]}" >&2
    $root apt-get update -qq && $root apt-get install -y -qq "${missing[@]}" >/dev/null
fi

# fsx: random file operations with every byte checked.
if [ ! -x "$cache/bin/fsx" ]; then
    echo "building fsx into $cache" >&2
    cargo install --quiet --locked --root "$cache" fsx --version 0.3.2
fi
