#!/bin/sh
# Lists the words of one text that have at least four letters, sorted, one in each line.
set -eu
cd "$ION_DIR"
tr -cs 'A-Za-z' '\n' <"$(echo in/data/*)" | tr 'A-Z' 'a-z' | grep -E '.{4}' | sort >out/data/words.txt

printf '{"title": "%s", "words": %d, "distinct": %d}\n' \
    "$(cat in/meta/title)" "$(wc -l <out/data/words.txt)" "$(uniq out/data/words.txt | wc -l)" >out/insights.json
printf '{"eventType": "counted", "files": "words.txt"}\n' >out/events/counted.json
