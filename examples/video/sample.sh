#!/bin/sh
# Publishes one event for every Nth frame, where N is EVERY. The event has the frame and the one two
# before it, which show what has moved.
set -eu
./python frames.py "$ION_DIR"/in/data/* "$ION_DIR/out/data" "$EVERY"

cd "$ION_DIR/out"
for now in data/*-now.png; do
    frame=$(basename "$now" -now.png)
    cat >"events/$frame.json" <<EVENT
{"eventType": "frame", "files": ["$frame-now.png", "$frame-before.png"], "frame": "$frame"}
EVENT
done
