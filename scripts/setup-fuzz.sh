#!/usr/bin/env bash
# Installs what `make fuzz` needs: a nightly toolchain, a C++ compiler and cargo-fuzz. Quiet when there is nothing to do. Programs of
# third parties are built into $ION_TEST_CACHE (default: ~/.cache/ion-test), outside this repository.
set -euo pipefail

"$(dirname "$0")/setup-build.sh"

cache=${ION_TEST_CACHE:-$HOME/.cache/ion-test}
if ! command -v c++ >/dev/null; then
    root=; [ "$(id -u)" = 0 ] || root=sudo
    echo "installing a C++ compiler" >&2
    $root apt-get update -qq && $root apt-get install -y -qq g++ >/dev/null
fi
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "installing a nightly toolchain" >&2
    rustup toolchain install nightly --profile minimal >/dev/null
fi
if [ ! -x "$cache/bin/cargo-fuzz" ]; then
    echo "building cargo-fuzz into $cache" >&2
    cargo install --quiet --locked --root "$cache" cargo-fuzz --version 0.13.2
fi
