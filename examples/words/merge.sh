#!/bin/sh
# Ranks the most frequent words of all texts. The sorted list of each text is in in/data/0,
# in/data/1 and so on, and in/events.json says which event each list comes from.
set -eu
cd "$ION_DIR"
sort -m in/data/*/words.txt | uniq -c | sort -rn | head -n "$TOP" | tee out/data/ranking.txt
printf '{"eventType": "ranking", "files": "ranking.txt"}\n' >out/events/ranking.json
