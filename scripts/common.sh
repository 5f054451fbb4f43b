# Functions and variables that the setup scripts and deploy/images.sh share. They source this file.
# shellcheck shell=bash disable=SC2034 # no script uses everything here

# The folder for programs of other projects, which lies outside this repository.
cache=${ION_TEST_CACHE:-$HOME/.cache/ion-test}
root=; [ "$(id -u)" = 0 ] || root=sudo

# packages_missing PROGRAM:PACKAGE...: prints the packages whose program is missing.
packages_missing() {
    local pair
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"
    done
}

# install_packages PACKAGE...: installs packages of Debian. Without a package it does nothing.
install_packages() {
    [ $# -gt 0 ] || return 0
    command -v apt-get >/dev/null || { echo "$0: please install $*" >&2; exit 1; }
    echo "installing $*" >&2
    $root apt-get update -qq && $root apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# install_servers PACKAGE...: installs packages that have a service. The service stays off, because
# the tests start servers of their own.
install_servers() {
    [ $# -gt 0 ] || return 0
    local policy=/usr/sbin/policy-rc.d made='' failed=0 unit
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null && $root chmod +x "$policy"
        made=1
    fi
    install_packages "$@" || failed=$?
    [ -z "$made" ] || $root rm -f "$policy"
    if command -v systemctl >/dev/null; then
        for unit in $(dpkg -L "$@" 2>/dev/null | grep '/systemd/system/[^/]*\.service$'); do
            $root systemctl disable --now "${unit##*/}" >/dev/null 2>&1 || true
        done
    fi
    return "$failed"
}
