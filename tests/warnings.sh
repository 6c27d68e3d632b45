#!/bin/sh
# The header in units whose warnings are strict: warnings.sh COMPILER STANDARD, or warnings.sh everything STANDARD for
# clang's -Weverything, by clang and by the newest one there is. Skipped (lib.sh) where the compiler is missing.
set -eu
cd "$(dirname "$0")/hygiene"
compiler=$1 standard=$2
. ../lib.sh

# What -Weverything says that is no fault here, and why.
exceptions() {
  sed 's/ .*//; s/^/-Wno-/' <<'END'
unknown-warning-option  older clangs do not know all of these
c++98-compat            the least that C++ needs to be is C++11
float-equal             infinities, NaN and sums of nothing at all are told by == and !=, which is exact
padded                  members stand in the order of what they mean
switch-default          the opposite of covered-switch-default: a switch without a default misses no stage
unsafe-buffer-usage     wants C++'s containers in the place of pointers
used-but-marked-unused  under HYPERATTN_STATIC a unit need not call every function
END
}

# Each leaves another library; the oldest standards see them all.
builds="STATIC NO_SIMD NO_AVX512 NO_AVX2 NO_AMX NO_SCAN NO_HYPER NO_JUDGING NO_HALVES NO_LONG_SUMS NO_TEXTS NO_MANY NO_FEW"

case $standard in *11) ;; *) builds='' ;; esac
case $standard in
c++*) language=c++ flags="-Wold-style-cast -Wzero-as-null-pointer-constant" ;;
*) language=c flags="-Wstrict-prototypes -Wbad-function-cast" ;;
esac
flags="$flags -Wall -Wextra -Wpedantic -Wconversion -Wcast-align -Wcast-qual -Wshadow -Wundef -Wdouble-promotion -Wvla"
case $compiler in
everything)
  compilers='' flags="-Weverything $(exceptions)"
  if has clang; then compilers=clang; fi
  for version in 21 20 19 18 17 16 15; do
    if has "clang-$version"; then compilers="$compilers clang-$version" && break; fi
  done
  ;;
g++) compilers=g++ flags="$flags -Wcast-align=strict -Wuseless-cast" ;;
*) compilers=$compiler ;;
esac
for cc in ${compilers:-clang}; do has "$cc" || skip "$cc is not installed"; done

failed=0
check() { # OPTION... UNIT
  # shellcheck disable=SC2086
  if ! "$cc" -x $language -std="$standard" $flags -Werror -I../.. "$@"; then
    echo "these warnings: $cc -std=$standard $*"
    failed=1
  fi
}
for cc in $compilers; do
  check -fsyntax-only declarations.c
  check -O0 -fsyntax-only implementation.c # intrinsics are macros
  if [ "$compiler" != everything ]; then check -O2 -c implementation.c -o /dev/null; fi # some are an optimiser's
  for build in $builds; do check "-DHYPERATTN_$build" -O1 -fsyntax-only implementation.c; done
done
exit $failed
