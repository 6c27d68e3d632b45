#!/bin/sh
# Builds and runs tests: sh tests/run.sh [WHAT...]
#   quick   (the default) in three minutes: every unit test as released and by each kernel, the example engine, examples,
#           inputs that fuzzing kept, and the cheapest of what checks the header as users meet it; installs cmocka alone
#   rest    what full runs and quick does not
#   full    presets test, sanitize, ubsan, msan and fuzz, whole
#   all     full, then valgrind and cross (other machines, emulated)
# or any of these presets. Says what it installs before it does.
set -eu
cd "$(dirname "$0")/.."
. tests/lib.sh

say() { echo "tests/run.sh: $*"; }
jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

# ---- What is needed ----

has_cmocka() {
  printf '#include <stdarg.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <setjmp.h>\n#include <cmocka.h>\n%s\n' \
    'int main(void) { return cmocka_run_group_tests_name("", (struct CMUnitTest *)0, 0, 0); }' |
    "${CC:-cc}" -x c - -o /dev/null -lcmocka 2>/dev/null || { has brew && brew list cmocka >/dev/null 2>&1; }
}
has_sanitizers() { echo 'int main(void) { return 0; }' | clang -fsanitize=memory -x c - -o /dev/null 2>/dev/null; }

# What the tests cannot do without: said, with the command for whoever may install it.
require() { # CHECK PACKAGE...
  check=$1
  shift
  ! "$check" || return 0
  ! install "$@" || ! "$check" || return 0
  say "$* is needed. To install it, as root:" >&2
  echo "    $(install_command "$@")" >&2
  exit 1
}

for tool in cmake "${CC:-cc}"; do
  has "$tool" || { say "no $tool; a C compiler, make and CMake are needed, e.g.: $(install_command gcc make cmake)" >&2 && exit 1; }
done
[ $# -gt 0 ] || set -- quick
stages=
for what; do
  case $what in
  quick | rest | test | sanitize | ubsan | msan | fuzz | valgrind | cross) stages="$stages $what" ;;
  full) stages="$stages test sanitize ubsan msan fuzz" ;;
  all) stages="$stages test sanitize ubsan msan fuzz valgrind cross" ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' tests/run.sh >&2 && exit 2 ;;
  esac
done
stages=$(echo "$stages" | sed 's/ rest/ rest sanitize ubsan msan fuzz/')
require has_cmocka libcmocka-dev
case $stages in
' quick') ;;
*) # a second compiler, C++, and what consumers need: what cannot be had is skipped by name
  has clang++ || install clang || true
  has g++ || install g++ || true
  has pkg-config || install pkg-config || true
  ! has clang || has_sanitizers || install "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev" || true
  ;;
esac

# ---- Stages: configure, build, test ----

# Passes on what a step says, in short: on a terminal one line that changes, in a pipe one line for each program built
# and each test run; all of it where something is wrong.
terminal=
[ ! -t 1 ] || terminal=yes
show() {
  while IFS= read -r line; do
    case $line in
    'Scanning dependencies'* | 'Consolidate compiler'* | 'Internal ctest'* | 'Test project'* | *'  Start '*) continue ;;
    '['*'] Built target '* | *' Test '*'#'*' Passed '*) kind=progress ;;
    '['*']'*) kind=passing ;;
    *) kind=told ;;
    esac
    case $terminal:$kind in
    yes:progress | yes:passing) printf '\r\033[K%.100s' "$line" ;;
    yes:told) printf '\r\033[K%s\n' "$line" ;;
    :passing) ;;
    *) printf '%s\n' "$line" ;;
    esac
  done
  [ -z "$terminal" ] || printf '\r\033[K'
}
failed=$(mktemp)
trap 'rm -f "$failed"' EXIT
step() { # COMMAND...
  : >"$failed"
  { "$@" 2>&1 || echo "$?" >"$failed"; } | show
  [ ! -s "$failed" ]
}
quietly() { # COMMAND...: shows what it says only where it fails
  "$@" >"$failed" 2>&1 || { cat "$failed" && return 1; }
}

stage() { # NAME
  case $1 in
  quick | rest) # the test preset's build, by any CMake that builds the tests
    if [ "$1" = quick ]; then target=quick label=-LE; else target=all label=-L; fi
    quietly cmake -S . -B build/test -DCMAKE_BUILD_TYPE=Release -DHYPERATTN_TESTS=ON &&
      say "building" && step cmake --build build/test --target "$target" --parallel "$jobs" &&
      say "testing" && (cd build/test && step ctest --output-on-failure --parallel "$jobs" "$label" rest)
    ;;
  cross | fuzz) # build as they test
    quietly cmake --preset "$1" && say "testing" && step ctest --preset "$1" --parallel "$jobs"
    ;;
  *)
    quietly cmake --preset "$1" &&
      say "building" && step cmake --build --preset "$1" --parallel "$jobs" &&
      say "testing" && step ctest --preset "$1" --parallel "$jobs"
    ;;
  esac
}

begin=$(date +%s) number=0 missed=
total=$(echo "$stages" | wc -w)
for name in $stages; do
  number=$((number + 1))
  say "stage $number of $total: $name"
  case $name in
  ubsan | msan) has_sanitizers || { missed="$missed $name" && say "SKIP: $name: no clang with its sanitizers" && continue; } ;;
  valgrind) has valgrind || install valgrind || { missed="$missed $name" && say "SKIP: no valgrind" && continue; } ;;
  esac
  stage "$name" || { say "FAILED: $name" >&2 && exit 1; }
done
say "passed in $(($(date +%s) - begin)) s:$stages${missed:+; SKIPPED:$missed}"
[ "$stages" != ' quick' ] || say "more (flavours, sanitizers, fuzzing, analysis): sh tests/run.sh full"
