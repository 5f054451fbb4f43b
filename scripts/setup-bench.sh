#!/usr/bin/env bash
# Installs what `make bench` compares with, beside what `make test` needs. Quiet when there is nothing to do.
set -euo pipefail

"$(dirname "$0")/setup-tests.sh"

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

mapfile -t missing < <(packages_missing rclone:rclone s3fs:s3fs)
install_packages "${missing[@]}"
