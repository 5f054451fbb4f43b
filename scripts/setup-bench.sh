#!/usr/bin/env bash
# Installs what `make test` needs, and the programs that `make bench` compares Ion with. Prints
# nothing if everything is installed.
set -euo pipefail

"$(dirname "$0")/setup-tests.sh"

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

mapfile -t missing < <(packages_missing rclone:rclone s3fs:s3fs)
install_packages "${missing[@]}"
