#!/usr/bin/env bash
# Runs examples/video on a real clip with the embedded stores, and shows what came of it.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup-build.sh
scripts/setup-examples.sh
ion=target/release/ion
# The first time takes minutes: cargo says how far it is.
[ -x "$ion" ] && quiet=(--quiet) || quiet=()
cargo build "${quiet[@]}" --locked --release
# Lines of the tree: what is beyond them looks like them.
shown=15
clip=${1:-${ION_EXAMPLES:-$HOME/.cache/ion-examples}/clips/bikes.mp4}

export ION_HOME=${ION_HOME:-$PWD/.ion/demo}
rm -rf "$ION_HOME"
mkdir -p "$ION_HOME"
"$ion" doctor

"$ion" up examples/video/pipeline.yaml >"$ION_HOME/up.log" 2>&1 &
up=$!
trap 'kill $up 2>/dev/null; wait $up || true' EXIT
# Until the dispatcher says so, or has ended.
until grep -q 'ion: ready' "$ION_HOME/up.log"; do
    kill -0 $up 2>/dev/null || { cat "$ION_HOME/up.log" >&2; exit 1; }
    sleep 0.1
done

echo
echo "ion event create new_video --file $clip --wait"
"$ion" event create new_video --file "$clip" --wait
echo
echo "ion trace | head -n $shown"
"$ion" trace | head -n "$shown"
echo "... and all the rest: ION_HOME=$ION_HOME $ion trace"

# The sheet's blob lies in the store under a readable name.
sheet=$(find "$ION_HOME/blobs" -name sheet.png)
echo
echo "The contact sheet of everything that moved: $sheet"
