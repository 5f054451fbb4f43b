# What the setup scripts share; they source it.
# shellcheck shell=bash disable=SC2034 # not each of them uses all of it

# Where programs of third parties are built: outside this repository.
cache=${ION_TEST_CACHE:-$HOME/.cache/ion-test}
root=; [ "$(id -u)" = 0 ] || root=sudo

# Of pairs of a program and its package, the packages whose program is missing.
packages_missing() {
    local pair
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"
    done
}

# Installs packages of Debian's, if any are named.
install_packages() {
    [ $# -gt 0 ] || return 0
    command -v apt-get >/dev/null || { echo "$0: these are needed: $*" >&2; exit 1; }
    echo "installing $*" >&2
    $root apt-get update -qq && $root apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# The same for servers that come with a service: it stays off, the tests start their own.
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
