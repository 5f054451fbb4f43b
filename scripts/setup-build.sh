#!/usr/bin/env bash
# What building needs beyond a Rust toolchain: a C compiler, for SQLite. Quiet when there is nothing to do.
set -euo pipefail
command -v cargo >/dev/null || { echo "$0: a Rust toolchain is needed: https://rustup.rs" >&2; exit 1; }
if ! command -v cc >/dev/null; then
    root=; [ "$(id -u)" = 0 ] || root=sudo
    echo "installing a C compiler" >&2
    $root apt-get update -qq && $root apt-get install -y -qq gcc libc6-dev >/dev/null
fi
