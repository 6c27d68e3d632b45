#!/bin/sh
# What src/ is held to: sources.sh CHECK WORK. Without arguments: each CHECK, one a line.
#   made     hyperattn.h is what amalgamate.cmake makes of src/, and docs/architecture.svg what its script makes
#   alone    a program that includes src/all.h has the same machine code as one that includes hyperattn.h
#   order    a file uses only what stands above it
#   limits   no source above 600 lines, no function above 60, no line above 110 columns, no function made by a macro of
#            more than 5 lines, no other code in a macro of more than 6
#   named    every source is read from all.h, and has its row in docs/architecture.md, in that order
#   undefs   hyperattn.h undefines every internal macro behind its last definition
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
. "$here/lib.sh"
[ $# -gt 0 ] || { printf '%s\n' made alone order limits named undefs && exit; }
check=$1
mkdir -p "$2"
cd "$2"
fail() { echo "$check: $*"; exit 1; }
read_sources() { awk -v check="$1" -v src="$root/src" -f "$here/sources.awk"; }

case $check in
made)
  rm -f hyperattn.h
  "${CMAKE:-cmake}" -P "$root/src/amalgamate.cmake" "$PWD/hyperattn.h" >said || fail "$(cat said)"
  cmp hyperattn.h "$root/hyperattn.h" || fail "hyperattn.h is not made of src/: cmake -P src/amalgamate.cmake"
  sh "$root/docs/architecture.sh" architecture.svg
  cmp architecture.svg "$root/docs/architecture.svg" || fail "the picture is old: sh docs/architecture.sh"
  ;;
alone)
  rm -f hyperattn.h # that `made` left, if it shares this folder
  for define in HYPERATTN_IMPLEMENTATION HYPERATTN_IMPLEMENTATION=1,HYPERATTN_NO_SIMD; do
    for file in hyperattn.h src/all.h; do
      printf '#define %s\n#include "%s"\n' "$(echo "$define" | sed 's/=1,/\n#define /')" "$file" >unit.c
      "${CC:-cc}" -std=c11 -O1 -w "-I$root" -c unit.c -o "${file##*/}.o" || fail "$file does not compile"
    done
    cmp hyperattn.h.o all.h.o || fail "src/all.h compiles to other code ($define)"
  done
  ;;
order | limits)
  read_sources "$check" >found
  [ ! -s found ] || { cat found && fail "$(wc -l <found) findings"; }
  ;;
named)
  read_sources files | sort >read
  (cd "$root/src" && ls ./*.h) | sed 's,^\./,,' | sort >there
  diff read there >differ || { cat differ && fail "all.h does not read what src/ holds"; }
  read_sources files >read
  sed -n 's/^| `\([a-z0-9_]*\.h\)` |.*/\1/p' "$root/docs/architecture.md" >rows
  diff read rows || fail "the table of docs/architecture.md is not all.h's list"
  ;;
undefs)
  awk '/^ *# *define +HYPERATTN_IMPLEMENTED/ { begun = 1 }
    !begun { next }
    /^ *# *define +(hai|HAI)_/ { sub(/^ *# *define +/, ""); sub(/[^A-Za-z0-9_].*/, ""); is[$0] = 1 }
    /^ *# *undef +(hai|HAI)_/ { sub(/^ *# *undef +/, ""); sub(/[^A-Za-z0-9_].*/, ""); delete is[$0]; n++ }
    END { for (name in is) print name; if (!n) print "nothing is undefined" }' "$root/hyperattn.h" >found
  [ ! -s found ] || { cat found && fail "these stay defined"; }
  for without in NOTHING SIMD AVX512 SCAN HYPER JUDGING FEW; do
    "${CC:-cc}" -dM -E -DHYPERATTN_IMPLEMENTATION "-DHYPERATTN_NO_$without" -x c "$root/hyperattn.h" >macros
    if grep -E 'define (hai|HAI)_' macros; then fail "these stay defined without $without"; fi
  done
  ;;
*) echo "sources.sh: no check $check" >&2 && exit 2 ;;
esac
