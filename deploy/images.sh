#!/usr/bin/env bash
# Makes the image that the chart runs, ion:VERSION with ion, ionfs and ion-handler, without Docker.
# The image is an archive for `docker load`, `podman load`, `ctr images import`,
# `kind load image-archive` and `skopeo copy oci-archive:FILE docker://...`.
#
#   deploy/images.sh [--programs FOLDER] [--output FILE]
#
# FOLDER has programs that are already built. Without it, the script builds a release. It links the
# programs statically if rustup has the target of musl and there is a musl-gcc. Otherwise it links
# them against this machine's glibc, which the image then contains. The image also contains
# certificates, and a busybox: a shell for `kubectl exec`, and `sleep`. Two runs on one machine,
# from the same commit and with the same programs, make the same image.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "images.sh: $*" >&2
    exit 1
}

folder='' output=''
while [ $# -gt 0 ]; do
    case $1 in
    --programs) folder=${2:?} ;;
    --output) output=${2:?} ;;
    *) fail "usage: images.sh [--programs FOLDER] [--output FILE]" ;;
    esac
    shift 2
done

# shellcheck source-path=SCRIPTDIR/.. source=scripts/common.sh
. scripts/common.sh
mapfile -t missing < <(packages_missing busybox:busybox-static strip:binutils)
! ldd "$(command -v busybox || echo /none)" >/dev/null 2>&1 || missing+=(busybox-static)
certificates=/etc/ssl/certs/ca-certificates.crt
[ -e "$certificates" ] || missing+=(ca-certificates)
install_packages "${missing[@]}"

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
[ -n "$version" ] || fail "Cargo.toml has no workspace.package.version"

if [ -z "$folder" ]; then
    musl=$(uname -m)-unknown-linux-musl
    if command -v musl-gcc >/dev/null && rustup target list --installed 2>/dev/null | grep -qx "$musl"; then
        cargo build --quiet --locked --release --bins --target "$musl"
        folder=${CARGO_TARGET_DIR:-target}/$musl/release
    else
        cargo build --quiet --locked --release --bins
        folder=${CARGO_TARGET_DIR:-target}/release
    fi
fi
programs=()
for program in ion ionfs ion-handler; do
    [ ! -x "$folder/$program" ] || programs+=("$folder/$program")
done
[ -x "$folder/ion" ] || fail "there is no ion in $folder"
output=${output:-${CARGO_TARGET_DIR:-target}/images/ion-$version.tar}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
base=$work/base top=$work/top image=$work/image
mkdir -p "$base"/{bin,etc/ssl/certs,tmp,var/lib/ion} "$top/usr/bin" "$image/blobs/sha256"

# Files that rarely change have a layer of their own, so that a node does not have to fetch them
# again.
cp "$(command -v busybox)" "$base/bin/busybox"
for applet in sh cat chmod cp date df du env find grep head hostname id ls mkdir mount mv nslookup ps pwd rm sed sleep sort stat tail test \
    tr umount wc wget xargs; do
    ln -s busybox "$base/bin/$applet"
done
cp -L "$certificates" "$base/etc/ssl/certs/"
printf '%s\n' root:x:0:0:root:/root:/bin/sh ion:x:65532:65532:ion:/var/lib/ion:/bin/sh >"$base/etc/passwd"
printf '%s\n' root:x:0: ion:x:65532: >"$base/etc/group"
echo 'hosts: files dns' >"$base/etc/nsswitch.conf"
# Copies the libraries of this machine that the programs need, to the paths at which the programs
# look for them.
mapfile -t libraries < <(for program in "${programs[@]}"; do ldd "$program" 2>/dev/null || true; done |
    sed -nE 's/.* => (\/[^ ]+) .*/\1/p; s/^\s*(\/[^ ]+) \(.*/\1/p' | sort -u)
for library in "${libraries[@]}"; do
    mkdir -p "$base$(dirname "$library")"
    cp -L "$library" "$base$library"
done
chmod 1777 "$base/tmp"
chmod 755 "$base"
# The daemons' user must be able to write to this folder.
owned=var/lib/ion

for program in "${programs[@]}"; do
    strip --strip-debug -o "$top/usr/bin/${program##*/}" "$program"
done

[ -e "$top/usr/bin/ionfs" ] || ln -s ion "$top/usr/bin/ionfs" # both know `csi`

# layer FOLDER: packs the folder as a layer. Adds the archive's digest to diff_ids, and the digest
# of the stored file to layers.
moment=$(git log -1 --format=%ct 2>/dev/null || echo 0)
pack() { tar --sort=name --mtime="@$moment" --numeric-owner --format=gnu "$@"; }
layer() {
    local plain=$work/layer.tar
    pack --create --owner=0 --group=0 --exclude="./$owned" --file "$plain" --directory "$1" .
    [ ! -d "$1/$owned" ] || pack --owner=65532 --group=65532 --append --file "$plain" --directory "$1" "./$owned"
    diff_ids+=("$(sha256sum "$plain" | cut -d ' ' -f 1)")
    gzip -n "$plain"
    layers+=("$(keep "$plain.gz")")
}
# keep FILE: moves the file to the blobs, under its digest, which it prints.
keep() {
    local digest
    digest=$(sha256sum "$1" | cut -d ' ' -f 1)
    mv "$1" "$image/blobs/sha256/$digest"
    echo "$digest"
}
size() { stat -c %s "$image/blobs/sha256/$1"; }
joined() { local IFS=,; echo "$*"; }

diff_ids=() layers=()
layer "$base"
layer "$top"

case $(uname -m) in
x86_64) architecture=amd64 ;;
aarch64) architecture=arm64 ;;
*) architecture=$(uname -m) ;;
esac
mapfile -t ids < <(printf '"sha256:%s"\n' "${diff_ids[@]}")
cat >"$work/config" <<JSON
{"architecture": "$architecture", "os": "linux", "created": "$(date -u -d "@$moment" +%FT%TZ)",
 "config": {"User": "65532:65532", "WorkingDir": "/var/lib/ion", "Entrypoint": ["ion"],
  "Env": ["PATH=/usr/bin:/bin", "HOME=/var/lib/ion", "ION_HOME=/var/lib/ion", "SSL_CERT_FILE=$certificates"],
  "Labels": {"org.opencontainers.image.title": "ion", "org.opencontainers.image.version": "$version", "org.opencontainers.image.licenses": "Apache-2.0"}},
 "rootfs": {"type": "layers", "diff_ids": [$(joined "${ids[@]}")]}}
JSON
config=$(keep "$work/config")
descriptors=() files=()
for digest in "${layers[@]}"; do
    descriptors+=("{\"mediaType\": \"application/vnd.oci.image.layer.v1.tar+gzip\", \"digest\": \"sha256:$digest\", \"size\": $(size "$digest")}")
    files+=("\"blobs/sha256/$digest\"")
done
cat >"$work/manifest" <<JSON
{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
 "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:$config", "size": $(size "$config")},
 "layers": [$(joined "${descriptors[@]}")]}
JSON
manifest=$(keep "$work/manifest")
cat >"$image/index.json" <<JSON
{"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:$manifest", "size": $(size "$manifest"),
 "platform": {"architecture": "$architecture", "os": "linux"},
 "annotations": {"io.containerd.image.name": "docker.io/library/ion:$version", "org.opencontainers.image.ref.name": "$version"}}]}
JSON
echo '{"imageLayoutVersion": "1.0.0"}' >"$image/oci-layout"
# Engines that do not know the OCI layout read this file.
echo "[{\"Config\": \"blobs/sha256/$config\", \"RepoTags\": [\"ion:$version\"], \"Layers\": [$(joined "${files[@]}")]}]" >"$image/manifest.json"

mkdir -p "$(dirname "$output")"
pack --create --owner=0 --group=0 --file "$output" --directory "$image" .

echo "ion:$version, $architecture, in $output: $(du -h "$output" | cut -f 1)"
for program in "${programs[@]}"; do
    printf '  %-12s %s\n' "${program##*/}" "$(du -h "$top/usr/bin/${program##*/}" | cut -f 1)"
done
printf '  %-12s %s\n' "the rest" "$(du -sh "$base" | cut -f 1)"
