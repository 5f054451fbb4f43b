#!/usr/bin/env bash
# Installs what `make test` needs beyond a Rust toolchain. Prints nothing if everything is
# installed. Programs of other projects are built into $ION_TEST_CACHE (default: ~/.cache/ion-test),
# outside this repository.
set -euo pipefail

"$(dirname "$0")/setup-build.sh"

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

mapfile -t missing < <(packages_missing bash:bash dash:dash perl:perl python3:python3 setfattr:attr setfacl:acl fusermount3:fuse3 unshare:util-linux \
    openssl:openssl ps:procps faketime:faketime fio:fio rsync:rsync crun:crun busybox:busybox-static skopeo:skopeo podman:podman)
# The reference parser of the metrics' format, for Debian's own Python.
/usr/bin/python3 -c 'import prometheus_client' 2>/dev/null || missing+=(python3-prometheus-client)
install_packages "${missing[@]}"

# fsx does random file operations and checks every byte.
if [ ! -x "$cache/bin/fsx" ]; then
    echo "building fsx into $cache" >&2
    cargo install --quiet --locked --root "$cache" fsx --version 0.3.2
fi

# pjdfstest tests every system call on files and its errors, as several users.
if [ ! -x "$cache/bin/pjdfstest" ]; then
    echo "building pjdfstest into $cache" >&2
    cargo install --quiet --locked --root "$cache" pjdfstest --version 0.2.2
fi

# cargo-deny checks the licenses and the sources of dependencies. Building it without optimization
# takes one minute instead of four.
if [ ! -x "$cache/bin/cargo-deny" ]; then
    echo "building cargo-deny into $cache" >&2
    cargo install --quiet --locked --debug --no-default-features --root "$cache" cargo-deny --version 0.20.2
fi

# The tests start these real servers.
rabbitmq=$(echo /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server)
[ -x "$rabbitmq" ] || install_servers rabbitmq-server
[ -x /usr/bin/docker-registry ] || install_servers docker-registry
[ -x /usr/sbin/nginx ] || install_servers nginx-light

# build_server PACKAGE VERSION PROGRAM: builds a server with little optimization, which takes a
# third of the time and is enough for tests.
build_server() {
    [ -x "$cache/bin/$3" ] && return
    local missing
    mapfile -t missing < <(packages_missing g++:g++ cmake:cmake make:make pkg-config:pkg-config)
    [ -e /usr/include/zlib.h ] || missing+=(zlib1g-dev)
    install_packages "${missing[@]}"
    echo "building $1 $2 into $cache (some minutes, once)" >&2
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=false CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_DEBUG=0 cargo install --quiet --locked --ignore-rust-version --root "$cache" "$1" --version "$2"
}
build_server secantus-mdb 0.5.3-beta.193 secantusd-rs # MongoDB's protocol
build_server garage 2.5.0 garage                      # S3

# Azurite is an Azure Blob store.
if [ ! -x "$cache/azurite/node_modules/.bin/azurite-blob" ]; then
    command -v npm >/dev/null || install_packages npm
    echo "installing azurite into $cache" >&2
    mkdir -p "$cache/azurite"
    npm install --loglevel=error --no-fund --no-audit --prefix "$cache/azurite" azurite@3.37.0 >/dev/null
fi

# Schemathesis tests what an OpenAPI document promises.
schemathesis=4.32.5
st=$cache/schemathesis/bin/st
if [ "$("$st" --version 2>/dev/null)" != "st, version $schemathesis" ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
    echo "installing schemathesis into $cache" >&2
    python3 -m venv --clear "$cache/schemathesis"
    "$cache/schemathesis/bin/python" -m pip install --quiet --disable-pip-version-check "schemathesis==$schemathesis"
fi

# osmem-server is an emulator of OpenSearch.
osmem=0.1.6
if [ "$("$cache/bin/osmem-server" -version 2>/dev/null | grep -o "$osmem")" != "$osmem" ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
    echo "installing osmem-server into $cache" >&2
    python3 -m venv --clear "$cache/osmem"
    "$cache/osmem/bin/python" -m pip install --quiet --disable-pip-version-check "osmem-server==$osmem"
    mkdir -p "$cache/bin"
    ln -sf "$(echo "$cache"/osmem/lib/python3*/site-packages/osmem_server/bin/osmem-server)" "$cache/bin/osmem-server"
fi

# feedparser reads feeds, and has tests with every mistake that feeds make. `ion-fetch` is compared
# with it on them.
feedparser=6.0.14
if [ ! -d "$cache/feedparser/tests" ] \
    || [ "$("$cache/feedparser/bin/python" -c 'import feedparser; print(feedparser.__version__)' 2>/dev/null)" != "$feedparser" ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
    echo "installing feedparser into $cache" >&2
    python3 -m venv --clear "$cache/feedparser"
    pip=("$cache/feedparser/bin/python" -m pip --quiet --disable-pip-version-check)
    "${pip[@]}" install "feedparser==$feedparser"
    # Its tests are in the archive of its source only.
    "${pip[@]}" download --no-deps --no-binary :all: --dest "$cache/feedparser" "feedparser==$feedparser"
    tar -xzf "$cache/feedparser/feedparser-$feedparser.tar.gz" -C "$cache/feedparser" --strip-components=1 "feedparser-$feedparser/tests"
fi

# The tests also try the chart and the systemd units.
"$(dirname "$0")/setup-deploy.sh"

# The tests also run the examples.
"$(dirname "$0")/setup-examples.sh"
