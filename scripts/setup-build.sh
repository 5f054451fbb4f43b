#!/usr/bin/env bash
# Checks that there is a Rust toolchain, and installs a C compiler, which the build needs for
# SQLite. Prints nothing if everything is installed.
set -euo pipefail
command -v cargo >/dev/null || { echo "$0: please install a Rust toolchain: https://rustup.rs" >&2; exit 1; }
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
command -v cc >/dev/null || install_packages gcc libc6-dev
