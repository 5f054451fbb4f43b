#!/usr/bin/env bash
# Installs what `make bench` compares with, beside what `make test` needs. Quiet when there is nothing to do.
set -euo pipefail

"$(dirname "$0")/setup-tests.sh"

root=; [ "$(id -u)" = 0 ] || root=sudo
missing=()
for program in rclone s3fs; do command -v "$program" >/dev/null || missing+=("$program"); done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}" >&2
    $root apt-get update -qq && $root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
