#!/bin/sh
# What the header does to those who include it: hygiene.sh CHECK COMPILER WORK. Without arguments: each CHECK COMPILER,
# one a line. Installs a compiler that is missing, or is skipped (lib.sh).
#   standards  compiles and runs among hostile macros, twice included, under every standard
#   units      several units, one implementation or one in each
#   leaks      no macro and no symbol but hyperattn's; no reserved identifier; memcpy and memset are all it calls
#   wide       no wide instruction outside the kernels, none that a macro leaves out
#   fast_math  refused with a message, or right
#   cost       prints what it costs to include and to compile: no test, and not in the list
set -eu
cd "$(dirname "$0")/hygiene"
here=$PWD root=$(cd ../.. && pwd)
. ../lib.sh

if [ $# = 0 ]; then
  for compiler in gcc clang newer_clang tcc; do echo "standards $compiler" && echo "units $compiler"; done
  for check in leaks wide fast_math; do echo "$check gcc" && echo "$check clang"; done
  exit
fi
check=$1 compiler=$2
mkdir -p "$3"
cd "$3"
fail() { echo "$check $compiler: $1"; exit 1; }

package=$compiler cc=$compiler cxx=
case $compiler in
gcc) cxx=g++ ;;
clang) cxx=clang++ ;;
newer_clang)
  for version in 21 20 19 18 17 16 15; do
    if has "clang-$version" || apt-cache show "clang-$version" >/dev/null 2>&1; then break; fi
  done
  package=clang-$version cc=clang-$version cxx=clang++-$version
  ;;
esac
need "$cc" "$package"
headers='-include stddef.h -include stdint.h'
implementation='-x c -DHYPERATTN_IMPLEMENTATION'

standards() { # COMPILER SOURCE-LANGUAGE STANDARD...
  driver=$1 language=$2
  shift 2
  for standard; do
    flags=
    [ "$compiler" = tcc ] || flags="-Wall -Wextra -Wundef -Werror"
    # shellcheck disable=SC2086
    "$driver" -std="$standard" $flags -I"$root" -x "$language" "$here/hostile.c" -o "hostile_$standard" &&
      "./hostile_$standard" || fail "$driver -std=$standard"
    echo "$driver -std=$standard: compiled, ran, right"
  done
}

macros() { "$cc" -dM -E "$@" | sed 's/^#define \([A-Za-z0-9_]*\).*/\1/' | sort -u; }

# Names of functions with an instruction that matches the pattern.
wide_functions() { # OBJECT PATTERN
  objdump -d --no-show-raw-insn "$1" | awk -v wide="$2" '/^[0-9a-f]+ <.*>:$/ {name = $2} $0 ~ wide {print name}' | sort -u
}

milliseconds() { # COMMAND...: the least of ten runs, or of three
  least=
  for _ in $runs; do
    begin=$(date +%s%N)
    "$@"
    took=$((($(date +%s%N) - begin) / 10000))
    if [ -z "$least" ] || [ "$took" -lt "$least" ]; then least=$took; fi
  done
  echo "$least" | sed 's/..$/.&/'
}

case $check in
standards)
  if [ "$compiler" = tcc ]; then
    standards tcc c c11
  else
    standards "$cc" c c11 c2x gnu11 # C17 is C11, mended
    has "$cxx" || skip "C passed; $cxx is not installed"
    standards "$cxx" c++ c++11 c++20
  fi
  ;;
units)
  for private in '' -DHYPERATTN_STATIC; do
    # shellcheck disable=SC2086
    "$cc" $private -I"$root" "$here/unit_a.c" "$here/unit_b.c" -o units && ./units || fail "units $private"
  done
  ;;
leaks)
  echo >empty.c
  # shellcheck disable=SC2086
  macros $headers empty.c >before
  macros -I"$root" "$here/declarations.c" >after
  if comm -13 before after | grep -v '^HYPERATTN_'; then fail "the declarations leak these macros"; fi
  # shellcheck disable=SC2086
  macros $headers -include string.h -include immintrin.h empty.c >before
  # shellcheck disable=SC2086
  macros $implementation "$root/hyperattn.h" >after
  if comm -13 before after | grep -v '^HYPERATTN_'; then fail "the implementation leaks these macros"; fi
  # shellcheck disable=SC2086
  "$cc" -O2 -fno-stack-protector $implementation -c "$root/hyperattn.h" -o leaks.o
  if nm -g leaks.o | awk '$1 != "U" && $2 != "U" {print $3}' | grep -v '^hyperattn_'; then fail "leaks these symbols"; fi
  if nm -u leaks.o | awk '{print $2}' | grep -Ev '^(memcpy|memset|_GLOBAL_OFFSET_TABLE_)$'; then fail "calls these"; fi
  # shellcheck disable=SC2086
  if [ "$compiler" = clang ]; then
    "$cc" -Wreserved-identifier -Wreserved-macro-identifier -Werror $implementation -fsyntax-only "$root/hyperattn.h"
  fi
  ;;
wide)
  [ "$(uname -m)" = x86_64 ] || skip "for x86-64"
  has objdump || skip "objdump is not installed"
  for without in '' SIMD AVX512 AVX2; do
    levels=-O2
    [ -n "$without" ] || levels='-O0 -O2 -O3 -Os'
    # shellcheck disable=SC2086
    for optimise in $levels; do
      "$cc" $optimise -DHYPERATTN_NO_"$without" $implementation -c "$root/hyperattn.h" -o wide.o
      case $without in
      '') pattern='%[yz]mm|%k[0-7]|%tmm|[ \t]v[a-z0-9]+ .*%xmm' allowed='avx|amx' ;;
      SIMD) pattern='%[yz]mm|%k[0-7]|%tmm|[ \t]v[a-z0-9]+ .*%xmm' allowed='^$' ;;
      AVX512) pattern='%zmm|%k[0-7]|%tmm' allowed='^$' ;;
      AVX2) pattern='%[yz]mm' allowed='avx512|amx' ;;
      esac
      wide_functions wide.o "$pattern" >found
      [ -n "$without" ] || [ -s found ] || fail "$optimise: no kernel found"
      if grep -Ev "$allowed" found; then fail "$optimise, without $without: wide instructions in these"; fi
    done
  done
  ;;
fast_math)
  # shellcheck disable=SC2086
  if "$cc" -ffast-math $implementation -fsyntax-only "$root/hyperattn.h" 2>message; then fail "is not refused"; fi
  grep -q 'hyperattn.h needs infinities' message || fail "does not say why"
  for optimise in -O1 -O3; do
    "$cc" $optimise -ffast-math -fno-finite-math-only -I"$root" -I"$here/.." -DTEST_DATA="\"$here/../data\"" \
      -DHYPERATTN_IMPLEMENTATION -D_POSIX_C_SOURCE=200809L "$here/../test_exact.c" -o fast_math -lcmocka -lm
    ./fast_math
  done
  ;;
cost)
  runs='1 2 3 4 5 6 7 8 9 10'
  echo '#include <stddef.h>' >empty.c
  echo '#include <stdint.h>' >>empty.c
  without=$(milliseconds "$cc" -O2 -c empty.c -o cost.o)
  with=$(milliseconds "$cc" -O2 -I"$root" -c "$here/declarations.c" -o cost.o)
  runs='1 2 3'
  # shellcheck disable=SC2086
  for optimise in -O0 -O1 -O2 -O3; do
    took=$(milliseconds "$cc" $optimise $implementation -c "$root/hyperattn.h" -o cost.o)
    echo "$cc $optimise: the implementation compiles in $took ms$([ $optimise != -O2 ] || echo ' (wanted: 2000)')"
  done
  echo "$cc -O2: the declarations add $(echo "$with $without" | awk '{print $1 - $2}') ms to a unit of $without ms (wanted: 20)"
  ;;
*) echo "hygiene.sh: no check $check" >&2 && exit 2 ;;
esac
