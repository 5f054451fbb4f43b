#!/usr/bin/env bash
# Lays out the root filesystem of an image like that of examples/video/Dockerfile, without an engine
# or a registry: the example below /video, the Python interpreter with OpenCV that
# scripts/setup-examples.sh installed, and all libraries that these load.
#
#   video-image.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../../.."

folder=${1:?usage: video-image.sh FOLDER}
venv=${ION_EXAMPLES:-$HOME/.cache/ion-examples}/venv
mapfile -t places < <("$venv/bin/python" -c 'import os, sys, sysconfig
print(os.path.realpath(sys.executable), sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}), sysconfig.get_path("purelib"), sep="\n")')
program=${places[0]} library=${places[1]} packages=${places[2]}

mkdir -p "$folder/video" "$folder/usr/bin" "$folder$(dirname "$program")" "$folder$library"
cp examples/video/{python,*.py,*.sh} "$folder/video/"
cp "$program" "$folder$program"
[ "$program" = /usr/bin/python3 ] || ln -s "$program" "$folder/usr/bin/python3"
tar --create --directory "$library" --exclude=test --exclude=tests --exclude=site-packages --exclude=dist-packages --exclude=__pycache__ . |
    tar --extract --directory "$folder$library"
# The folder in which this interpreter looks for packages by default.
own=$library/$("$program" -c 'import os, site; print(os.path.basename(site.getsitepackages()[0]))')
mkdir -p "$folder$own"
cp -a "$packages"/{cv2,numpy,numpy.libs,opencv_python_headless.libs} "$folder$own/"

mapfile -t libraries < <({
    ldd "$program"
    find "$folder$library" -name '*.so*' -type f -exec ldd {} + 2>/dev/null
} | sed -nE 's/.* => (\/[^ ]+) .*/\1/p; s/^\s*(\/[^ ]+) \(.*/\1/p' | sort -u)
for one in "${libraries[@]}"; do
    [ -e "$folder$one" ] || case $one in
    "$folder"*) ;;
    *) mkdir -p "$folder$(dirname "$one")" && cp -L "$one" "$folder$one" ;;
    esac
done
