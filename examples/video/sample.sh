#!/bin/sh
# Publishes one event for every EVERYth frame: the frame, and the one just before it to see movement by.
set -eu
./python frames.py "$ION_DIR"/in/data/* "$ION_DIR/out/data" "$EVERY"

cd "$ION_DIR/out"
for now in data/*-now.png; do
    frame=$(basename "$now" -now.png)
    cat >"events/$frame.json" <<EVENT
{"eventType": "frame", "files": ["$frame-now.png", "$frame-before.png"], "frame": "$frame"}
EVENT
done
