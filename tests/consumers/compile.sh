#!/bin/sh
# The header and a compiler alone: compile.sh WAY SOURCE WORK, SOURCE the project. Without arguments: each WAY, one a
# line. Exit code 77, and a line that says why, where a tool is missing.
#   plain    the header copied into a program of two units
#   example  the command by which the README and the manual compile the example
#   shared   a shared library that exports the interface and nothing else, if HYPERATTN_API says so
#   private  HYPERATTN_STATIC exports nothing, whatever HYPERATTN_API says
#   dll      __declspec by HYPERATTN_API, as clang compiles for Windows
set -eu
[ $# -gt 0 ] || { printf '%s\n' plain example shared private dll && exit; }
way=$1 source=$2 work=$3
here=$source/tests/consumers header=$2/hyperattn.h
fail() { echo "$way: $*" >&2; exit 1; }
. "$source/tests/lib.sh"
rm -rf "$work"
mkdir -p "$work"
cd "$work"

compilers=
for compiler in "${CC:-cc}" "${CXX:-c++}" gcc g++ clang clang++; do
  ! has "$compiler" || compilers="$compilers $compiler"
done
compile() { # COMPILER OPTION... SOURCE: as C11 or C++11, without a warning
  driver=$1
  shift
  language='c -std=c11'
  case $driver in *++) language='c++ -std=c++11' ;; esac
  # shellcheck disable=SC2086 # options are words
  "$driver" -x $language -Wall -Wextra -Wpedantic -Werror -I"$source" "$@"
}
public='-DHYPERATTN_API=__attribute__((visibility("default")))'
sed -n 's/^HYPERATTN_API [^(]*[ *]\([a-z_]*\)(.*/\1/p' "$header" | sort -u >interface
[ -s interface ] || fail "the header declares no function"
same() { diff "$1" "$2" || fail "$driver: what is exported (<) is not what should be (>)"; }

case $way in
plain)
  for compiler in $compilers; do
    cp "$header" .
    compile "$compiler" "$here/main.c" "$here/library.c" -o consumer
    ./consumer
  done
  ;;
example)
  cp -R "$header" "$source/examples" .
  for text in README.md hyperattn.h; do
    command=$(grep -o 'cc -std=c11 [^`)]*minimal\.c' "$source/$text") || fail "$text does not say how to compile it"
    echo "$text: $command"
    rm -f a.out
    sh -c "$command"
    ./a.out | grep '^ok; '
  done
  ;;
shared)
  has nm || skip "$way: nm is not installed"
  for compiler in $compilers; do
    for api in "$public" -DNONE; do
      compile "$compiler" -DHYPERATTN_NO_SIMD -fPIC -fvisibility=hidden "$api" -shared "$here/library.c" \
        -o libhyperattn.so
      nm -D --defined-only libhyperattn.so | awk '{print $3}' | grep hyper | sort >exported || true
      case $api in
      -DNONE) same exported /dev/null ;;
      *)
        same exported interface
        compile "$compiler" "$api" "$here/main.c" -L. -lhyperattn "-Wl,-rpath,$work" -o consumer
        ./consumer
        ;;
      esac
    done
  done
  ;;
private)
  has nm || skip "$way: nm is not installed"
  for compiler in $compilers; do
    for api in "$public" -DHYPERATTN_API= '-DHYPERATTN_API=__attribute__((dllimport))' -DNONE; do
      compile "$compiler" -DHYPERATTN_NO_SIMD -DHYPERATTN_STATIC "$api" -c "$here/library.c" -o library.o
      nm -g --defined-only library.o | awk '{print $3}' | sort >exported
      same exported /dev/null
    done
  done
  ;;
dll)
  has clang || skip "$way: clang is not installed"
  windows="--target=x86_64-pc-windows-gnu -ffreestanding -O1 -DHYPERATTN_MEMCPY=__builtin_memcpy
    -DHYPERATTN_MEMSET=__builtin_memset"
  printf '#include "hyperattn.h"\nint used(void);\nint used(void) { return (int)hyperattn_detect_isa(); }\n' >user.c
  for compiler in clang clang++; do
    # shellcheck disable=SC2086
    compile "$compiler" $windows '-DHYPERATTN_API=__declspec(dllexport)' -S "$here/library.c" -o library.s
    sed -n 's/.* -export:"*\(hyper[a-z_]*\).*/\1/p' library.s | sort >exported
    same exported interface
    # shellcheck disable=SC2086
    compile "$compiler" $windows '-DHYPERATTN_API=__declspec(dllimport)' -S user.c -o user.s
    grep -q __imp_hyperattn_detect_isa user.s || fail "$compiler: the function is not imported"
  done
  ;;
*) fail "no such way" ;;
esac
