#!/bin/sh
# Line and branch coverage of src/ by the unit tests, over builds with every kernel, and without. Their hyperattn.h is
# src/all.h here, so that gcov counts by source, and a template's lines once for each ISA:
# coverage.sh [WORK [UNIT...]]. Prints what no test runs or takes, what this machine cannot run, then the two shares of
# what it can; fails below LINES_WANTED and BRANCHES_WANTED per cent (97, 90). HIDE=amx-bf16 hides what hide_cpu.c says.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
. tests/lib.sh
work=${1:-build/coverage}
[ $# = 0 ] || shift
mkdir -p "$work"
cd "$work"
for tool in gcc gcov python3; do need $tool $tool; done
# shellcheck disable=SC2046 # names
[ $# -gt 0 ] || set -- $(units "$root/tests/units.txt" coverage)

on_machine() { "$@"; }
if [ -n "${HIDE:-}" ]; then
  gcc -O1 -shared -fPIC "$root/tests/hide_cpu.c" -o hide_cpu.so -ldl
  on_machine() { LD_PRELOAD=$PWD/hide_cpu.so "$@"; }
fi
gcc -w "-I$root" "$root/tests/isas.c" -o isas
on_machine ./isas >isas.txt || skip "this machine cannot hide $HIDE"

mkdir -p include
echo "#include \"$root/src/all.h\"" >include/hyperattn.h
rm -f ./*.gcda ./*.gcno ./*.json
for without in NOTHING AVX512 AMX SIMD; do # NOTHING is no option: everything
  for unit; do
    name=${unit}_$without
    gcc --coverage -O0 -std=c11 -w -D_POSIX_C_SOURCE=200809L "-DHYPERATTN_NO_$without" -DHYPERATTN_IMPLEMENTATION \
      "-DTEST_DATA=\"$root/tests/data\"" "-DSOURCE_DIR=\"$root\"" -Iinclude "-I$root" \
      "$root/tests/test_$unit.c" -o "$name" -lcmocka -lm
    on_machine ./"$name" >"$name.log" 2>&1 || { cat "$name.log" && exit 1; }
    gcov --branch-probabilities --json-format --stdout "$name-test_$unit.gcda" >"$name.json"
  done
done
python3 "$root/tests/coverage.py" "$root/src" isas.txt "${LINES_WANTED:-97}" "${BRANCHES_WANTED:-90}" ./*.json
