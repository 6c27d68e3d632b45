#!/bin/sh
# Fuzzes: sh tests/fuzz/run.sh [afl] TARGET SECONDS [WORK]   (TARGET: attention, merge, index or gguf)
# with libFuzzer, or AFL++, from the corpus on; what is found stays in WORK (default: build/fuzz-TARGET).
# Prints executions, coverage and crashes. Exit status: 0, 1 where something was found, 77 where tools are missing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
. "$here/../lib.sh"
engine=libfuzzer
[ "${1:-}" != afl ] || { engine=afl && shift; }
target=${1:?TARGET} seconds=${2:?SECONDS}
work=${3:-$root/build/fuzz-$target}
[ -f "$here/$target.c" ] || { echo "no target $target" >&2 && exit 2; }
mkdir -p "$work/found"
work=$(cd "$work" && pwd)

sources="$here/$target.c" library=-DHYPERATTN_IMPLEMENTATION
[ "$target" != gguf ] || {
  library=
  for part in gguf dequant tokenizer; do sources="$sources $root/examples/llm/$part.c"; done
}
build() { # COMPILER FLAGS..
  "$@" -O1 -g -std=c11 -D_POSIX_C_SOURCE=200809L -fno-sanitize-recover=all $library -I"$root" -I"$root/examples" \
    -I"$root/examples/llm" $sources -lm -o "$work/fuzz_$target"
}
export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=1}" UBSAN_OPTIONS="${UBSAN_OPTIONS:-print_stacktrace=1}"
dictionary=$here/$target.dict

if [ $engine = libfuzzer ]; then
  has_fuzzer() {
    has clang &&
      echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n ? 0 : 0; }' |
      clang -x c - -fsanitize=fuzzer,address,undefined -o "$work/probe" 2>/dev/null
  }
  has_fuzzer || install clang libclang-rt-dev || true
  has_fuzzer || install "libclang-rt-$(clang -dumpversion 2>/dev/null | cut -d. -f1)-dev" || true
  has_fuzzer || skip "no clang with libFuzzer, and none could be installed (clang, libclang-rt-dev)"
  build clang -fsanitize=fuzzer,address,undefined
  set -- -max_total_time="$seconds" -max_len=4096 -timeout=25 -rss_limit_mb=2048 -print_final_stats=1
  [ ! -f "$dictionary" ] || set -- "$@" -dict="$dictionary"
  status=0
  cd "$work"
  "./fuzz_$target" "$@" found "$here/corpus/$target" >log 2>&1 || status=$?
  grep -E 'cov:|stat::number|stat::average|ERROR|SUMMARY|\.c:[0-9]+: ' log | tail -n 8
  crashes=$(find . -maxdepth 1 -name 'crash-*' -o -maxdepth 1 -name 'timeout-*' -o -maxdepth 1 -name 'leak-*' \
    -o -maxdepth 1 -name 'oom-*')
else
  compiler=
  for try in 1 2; do
    for name in afl-clang-fast afl-gcc-fast; do
      [ -n "$compiler" ] || ! has $name || compiler=$name
    done
    [ -n "$compiler" ] || [ $try = 2 ] || install afl++ clang || true
  done
  [ -n "$compiler" ] && has afl-fuzz || skip "no AFL++, and none could be installed (afl++)"
  sources="$sources $here/replay.c"
  build $compiler -fsanitize=address,undefined >"$work/log" 2>&1 || skip "$compiler: $(tail -n 1 "$work/log")"
  export AFL_SKIP_CPUFREQ=1 AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1 AFL_NO_UI=1 AFL_NO_AFFINITY=1
  export ASAN_OPTIONS=abort_on_error=1:symbolize=0:detect_leaks=0 UBSAN_OPTIONS=abort_on_error=1:symbolize=0
  set -- -V "$seconds" -m none -t 5000+ -i "$here/corpus/$target" -o "$work/afl"
  [ ! -f "$dictionary" ] || set -- "$@" -x "$dictionary"
  afl-fuzz "$@" -- "$work/fuzz_$target" @@ >>"$work/log" 2>&1 || { tail -n 20 "$work/log" && exit 1; }
  grep -E '^(execs_done|execs_per_sec|corpus_count|edges_found|bitmap_cvg|saved_crashes|saved_hangs)' \
    "$work/afl/default/fuzzer_stats"
  crashes=$(find "$work/afl/default/crashes" -type f ! -name README.txt)
  status=0
fi
if [ -n "$crashes" ] || [ $status != 0 ]; then
  echo "FOUND in $work: $crashes" && exit 1
fi
echo "no crash in $seconds s"
