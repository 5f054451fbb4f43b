#!/usr/bin/env bash
# What building needs beyond a Rust toolchain: a C compiler, for SQLite. Quiet when there is nothing to do.
set -euo pipefail
command -v cargo >/dev/null || { echo "$0: a Rust toolchain is needed: https://rustup.rs" >&2; exit 1; }
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
command -v cc >/dev/null || install_packages gcc libc6-dev
