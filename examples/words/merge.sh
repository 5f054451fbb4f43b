#!/bin/sh
# The most frequent words of all texts. Their sorted lists lie at in/data/0, in/data/1 and so on; in/events.json says
# which is whose.
set -eu
cd "$ION_DIR"
sort -m in/data/*/words.txt | uniq -c | sort -rn | head -n "$TOP" | tee out/data/ranking.txt
printf '{"eventType": "ranking", "files": "ranking.txt"}\n' >out/events/ranking.json
