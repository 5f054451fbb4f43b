#!/usr/bin/env bash
# Installs what `make fuzz` needs: a nightly toolchain, a C++ compiler and cargo-fuzz. Prints
# nothing if everything is installed. cargo-fuzz is built into $ION_TEST_CACHE (default:
# ~/.cache/ion-test), outside this repository.
set -euo pipefail

"$(dirname "$0")/setup-build.sh"

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

command -v c++ >/dev/null || install_packages g++
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "installing a nightly toolchain" >&2
    rustup toolchain install nightly --profile minimal >/dev/null
fi
if [ ! -x "$cache/bin/cargo-fuzz" ]; then
    echo "building cargo-fuzz into $cache" >&2
    cargo install --quiet --locked --root "$cache" cargo-fuzz --version 0.13.2
fi
