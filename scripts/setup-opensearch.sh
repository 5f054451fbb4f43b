#!/usr/bin/env bash
# Installs a real OpenSearch of one node into $ION_TEST_CACHE/opensearch, and runs a command with it:
#
#     scripts/setup-opensearch.sh                                         installs it
#     scripts/setup-opensearch.sh cargo test -p ion-index --test server   runs the tests of the
#                                                                         search index against it
#
# The server listens on loopback only, and its data is removed when the command ends. Maven gets it
# from the central repository, in the form that OpenSearch's own integration tests use. It needs
# Java 17, 1 GB of memory and 200 MB of disk.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

version=2.19.1
home=$cache/opensearch/opensearch-$version

fail() { echo "$0: $*" >&2; exit 1; }

# java_of_17: prints the home of a Java 17, if there is one.
java_of_17() {
    local java
    for java in "${JAVA_HOME:-/none}" /usr/lib/jvm/java-17-openjdk-* /usr/lib/jvm/*17*; do
        if [ -x "$java/bin/java" ] && "$java/bin/java" -version 2>&1 | grep -q 'version "17'; then
            echo "$java"
            return
        fi
    done
}

mapfile -t missing < <(packages_missing mvn:maven unzip:unzip curl:curl setpriv:util-linux)
[ -n "$(java_of_17)" ] || missing+=(openjdk-17-jre-headless)
install_packages "${missing[@]}"
java=$(java_of_17)
[ -n "$java" ] || fail "there is no Java 17; install openjdk-17-jre-headless, or set JAVA_HOME"

if [ ! -x "$home/bin/opensearch" ]; then
    echo "getting OpenSearch $version into $cache (once)" >&2
    mkdir -p "$cache/opensearch"
    work=$(mktemp -d -p "$cache/opensearch" get.XXXXXX)
    trap 'rm -rf "$work"' EXIT
    artifact=org.opensearch.distribution.integ-test-zip:opensearch:$version:zip
    if ! JAVA_HOME=$java mvn --batch-mode --quiet -Dstyle.color=never org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy \
        -Dartifact="$artifact" -DoutputDirectory="$work" >"$work/log" 2>&1; then
        grep -m 2 ERROR "$work/log" >&2 || tail -n 5 "$work/log" >&2
        fail "Maven cannot get $artifact: its central repository has to be reachable from here, directly or by a" \
            "mirror in ~/.m2/settings.xml. The tests run without a real OpenSearch too, against an emulator"
    fi
    unzip -q "$work/opensearch-$version.zip" -d "$work/unpacked"
    [ -x "$work/unpacked/opensearch-$version/bin/opensearch" ] ||
        fail "the archive of OpenSearch $version has no bin/opensearch: it is built in another way than this script knows"
    rm -rf "$home"
    mv "$work/unpacked/opensearch-$version" "$home"
    rm -rf "$work"
    trap - EXIT
fi
[ $# -gt 0 ] || exit 0

# OpenSearch does not run as root. Its settings, log and data are in a folder of this run.
run=$(mktemp -d)
server=''
# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
    [ -z "$server" ] || { kill "$server" 2>/dev/null && wait "$server" 2>/dev/null; } || true
    rm -rf "$run"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
as=()
cp -r "$home" "$run/opensearch"
if [ "$(id -u)" = 0 ]; then
    as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    chown -R 65534:65534 "$run"
fi
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
transport=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
env -u JAVA_HOME OPENSEARCH_JAVA_HOME="$java" OPENSEARCH_JAVA_OPTS='-Xms512m -Xmx512m' HOME="$run" \
    "${as[@]}" "$run/opensearch/bin/opensearch" -E discovery.type=single-node -E network.host=127.0.0.1 \
    -E http.port="$port" -E transport.port="$transport" -E cluster.routing.allocation.disk.threshold_enabled=false \
    >"$run/log" 2>&1 </dev/null &
server=$!
url=http://127.0.0.1:$port
deadline=$((SECONDS + 120))
until curl --noproxy '*' -sf "$url" >/dev/null; do
    if ! kill -0 "$server" 2>/dev/null || [ "$SECONDS" -ge "$deadline" ]; then
        tail -n 20 "$run/log" >&2
        fail "OpenSearch $version does not answer at $url; its last words are above"
    fi
    sleep 0.5
done
status=0
ION_TEST_OPENSEARCH=$url "$@" || status=$?
exit "$status"
