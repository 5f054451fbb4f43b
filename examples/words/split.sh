#!/bin/sh
# Publishes one event for each text. `ln` from in/data to out/data moves a reference and not a byte.
set -eu
cd "$ION_DIR"
for text in in/data/*; do
    name=$(basename "$text")
    ln "$text" "out/data/$name"
    printf '{"eventType": "text", "files": ["%s"], "title": "%s"}\n' "$name" "$name" >"out/events/$name.json"
done
