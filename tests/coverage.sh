#!/bin/sh
# Line and branch coverage of hyperattn.h by the unit tests, over builds with every kernel, and without:
# coverage.sh [WORK]. Prints what no test runs or takes, then the two shares; fails below LINES_WANTED and
# BRANCHES_WANTED per cent (97, 90). Exit code 77, and a line that says why, where gcc, gcov or python3 is
# missing.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
mkdir -p "${1:-build/coverage}"
cd "${1:-build/coverage}"
for tool in gcc gcov python3; do
  command -v $tool >/dev/null 2>&1 || { echo "SKIP: coverage: no $tool"; exit 77; }
done

rm -f ./*.gcda ./*.gcno ./*.json
for without in NOTHING AVX512 AMX SIMD; do # NOTHING is no option: everything
  for unit in numbers dtypes exact selection hyper judge causal api edges defects golden embedded bounds adversarial; do
    name=${unit}_$without
    gcc --coverage -O0 -std=c11 -w -D_POSIX_C_SOURCE=200809L "-DHYPERATTN_NO_$without" \
      "-DTEST_DATA=\"$root/tests/data\"" "-DSOURCE_DIR=\"$root\"" "-I$root" \
      "$root/tests/test_$unit.c" -o "$name" -lcmocka -lm
    ./"$name" >"$name.log" 2>&1 || { cat "$name.log" && exit 1; }
    gcov --branch-probabilities --json-format --stdout "$name-test_$unit.gcda" >"$name.json"
  done
done

python3 - "$root/hyperattn.h" "${LINES_WANTED:-97}" "${BRANCHES_WANTED:-90}" ./*.json <<'END'
import collections, json, sys
header, lines_wanted, branches_wanted, *reports = sys.argv[1:]
text = open(header).read().split("\n")
run, taken = collections.Counter(), collections.Counter()
for report in reports:
    for one in map(json.loads, open(report)):
        for line in (line for file in one["files"] if file["file"] == header for line in file["lines"]):
            run[line["line_number"]] += line["count"]  # the copies of a macro's function are one function
            for i, branch in enumerate(line["branches"]):
                taken[line["line_number"], line.get("function_name"), i] += branch["count"]
for n in sorted(run):
    sides = [count for key, count in taken.items() if key[0] == n]
    if not run[n]:
        print(f"not run {n}: {text[n - 1].strip()}")
    elif 0 in sides:
        print(f"not taken {n} ({sides.count(0)} of {len(sides)}): {text[n - 1].strip()}")
lines = 100 * sum(count > 0 for count in run.values()) / len(run)
branches = 100 * sum(count > 0 for count in taken.values()) / len(taken)
print(f"lines {lines:.1f} per cent of {len(run)}, branches {branches:.1f} per cent of {len(taken)}")
sys.exit(lines < float(lines_wanted) or branches < float(branches_wanted))
END
