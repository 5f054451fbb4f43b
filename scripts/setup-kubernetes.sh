#!/usr/bin/env bash
# Installs what `make test-kubernetes` needs: a real Kubernetes for one node. Prints nothing if
# everything is installed. Debian packages only the client of its Kubernetes, so this script builds
# the servers from Debian's source, into $ION_TEST_CACHE/kubernetes (ten minutes, once).
set -euo pipefail

"$(dirname "$0")/setup-build.sh"
"$(dirname "$0")/setup-deploy.sh"
"$(dirname "$0")/setup-examples.sh"
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

mapfile -t missing < <(packages_missing busybox:busybox-static ip:iproute2 mount:mount nsenter:util-linux openssl:openssl ps:procps \
    setpriv:util-linux socat:socat fusermount3:fuse3)
# A busybox that is linked dynamically cannot be the only program of a root filesystem.
ldd "$(command -v busybox || echo /none)" >/dev/null 2>&1 && missing+=(busybox-static)
[ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
install_packages "${missing[@]}"
mapfile -t missing < <(packages_missing etcd:etcd-server containerd:containerd runc:runc)
install_servers "${missing[@]}"

programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl)
kubernetes=$cache/kubernetes
complete=1
for program in "${programs[@]}"; do [ -x "$kubernetes/$program" ] || complete=; done
[ -z "$complete" ] || exit 0

go=/usr/lib/go-1.19/bin
mapfile -t missing < <(packages_missing $go/go:golang-1.19-go make:make rsync:rsync dpkg-source:dpkg-dev)
reflect2=/usr/share/gocode/src/github.com/modern-go/reflect2
[ -d $reflect2 ] || missing+=(golang-github-modern-go-reflect2-dev)
install_packages "${missing[@]}"

mkdir -p "$cache"
work=$(mktemp -d -p "$cache" kubernetes-build.XXXXXX)
trap 'rm -rf "$work"' EXIT

# The apt lists of sources, from the same servers as the machine's packages. Only the calls below
# use them, and the machine's own lists stay as they are.
mkdir -p "$work"/{apt.d,lists,cache}
for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [ ! -e "$list" ] || sed 's/^Types:.*/Types: deb-src/; s/^deb /deb-src /' "$list" >"$work/apt.d/${list##*/}"
done
[ ! -e "$work/apt.d/sources.list" ] || mv "$work/apt.d/sources.list" "$work/apt.d/machine.list"
apt=(apt-get -qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/apt.d" -o Dir::State::Lists="$work/lists"
    -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root)
cd "$work"
"${apt[@]}" update 2>/dev/null || true # a server without sources is no failure
"${apt[@]}" source --download-only kubernetes >/dev/null
dpkg-source --no-check -x ./*.dsc source >/dev/null
[ -d source/cmd/kubelet ] || { echo "$0: the source of kubernetes in this Debian has no servers; use Debian 12" >&2; exit 1; }

# The source's own reflect2 reads maps by their layout before Go 1.18, so the API server would crash
# now and then while it writes JSON. Debian's newer reflect2 replaces it.
rm source/vendor/github.com/modern-go/reflect2/*.go
cp "$reflect2"/*.go source/vendor/github.com/modern-go/reflect2/

# Outside a git tree the build does not know its version, which clients ask the server for.
version=$(sed -n 's/^Version: //p' ./*.dsc | sed 's/.*really//; s/-.*//')
IFS=. read -r major minor _ <<<"$version"
printf 'KUBE_GIT_%s\n' VERSION="v$version" MAJOR="$major" MINOR="$minor" COMMIT=debian TREE_STATE=archive >version

echo "building Kubernetes $version into $kubernetes (ten minutes, once)" >&2
if ! PATH=$go:$PATH HOME=$work TMPDIR=$work GOCACHE=$work/go CGO_ENABLED=0 KUBE_GIT_VERSION_FILE=$work/version \
    nice -n 19 make -C source GOLDFLAGS='-s -w' WHAT="${programs[*]/#/cmd/}" >log 2>&1; then
    tail -n 30 log >&2
    exit 1
fi
mkdir -p "$kubernetes"
for program in "${programs[@]}"; do mv "source/_output/local/go/bin/$program" "$kubernetes/"; done
