#!/usr/bin/env bash
# Runs examples/video on a real clip with the embedded stores, and shows the results.
#
#   scripts/demo.sh [CLIP]
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup-build.sh
scripts/setup-examples.sh
ion=target/release/ion
# The first build takes minutes, so cargo shows its progress then.
[ -x "$ion" ] && quiet=(--quiet) || quiet=()
cargo build "${quiet[@]}" --locked --release
# The number of lines of the tree to show. The lines after them look alike.
shown=15
clip=${1:-${ION_EXAMPLES:-$HOME/.cache/ion-examples}/clips/bikes.mp4}

export ION_HOME=${ION_HOME:-$PWD/.ion/demo}
rm -rf "$ION_HOME"
mkdir -p "$ION_HOME"
"$ion" doctor

"$ion" up examples/video/pipeline.yaml >"$ION_HOME/up.log" 2>&1 &
up=$!
trap 'kill $up 2>/dev/null; wait $up || true' EXIT
# Waits until the dispatcher says that it is ready, and fails if it has ended.
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
echo "... (for the whole tree: ION_HOME=$ION_HOME $ion trace)"

# The blob of the contact sheet has a readable name in the store.
sheet=$(find "$ION_HOME/blobs" -name sheet.png)
echo
echo "The contact sheet of everything that moved: $sheet"
