#!/usr/bin/env bash
# Checks the licenses and the sources of all dependencies against deny.toml, without the network.
# Prints nothing if all are as they should be. scripts/setup-tests.sh installs the checker.
#
# With "advisories" it looks up known vulnerabilities instead, for which it fetches their list from
# the network.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

deny=("$cache/bin/cargo-deny" --log-level error)
case "${1:-}" in
    '') "${deny[@]}" --offline check bans licenses sources >/dev/null ;;
    advisories) "${deny[@]}" check advisories ;;
    *) echo "usage: $0 [advisories]" >&2; exit 2 ;;
esac
