#!/usr/bin/env bash
# Runs each fuzz target for ION_FUZZ_SECONDS (1,200). The inputs that the fuzzer finds are kept in
# $ION_TEST_CACHE/corpus (default: ~/.cache/ion-test/corpus), and the seeds in fuzz/corpus stay as
# they are.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${ION_TEST_CACHE:-$HOME/.cache/ion-test}
for target in answer event feed names pipeline terms; do
    mkdir -p "$cache/corpus/$target"
    echo "fuzzing $target for ${ION_FUZZ_SECONDS:-1200} s" >&2
    PATH="$cache/bin:$PATH" cargo +nightly fuzz run "$target" "$cache/corpus/$target" "fuzz/corpus/$target" -- \
        -max_total_time="${ION_FUZZ_SECONDS:-1200}" -print_final_stats=1 -timeout=10 -rss_limit_mb=2048 -verbosity=0
done
