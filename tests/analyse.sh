#!/bin/sh
# Static analysis of the implementation, no finding allowed: analyse.sh TOOL (cppcheck, clang_tidy or gcc).
# Installs a tool that is missing, or is skipped (lib.sh).
# It reads src/all.h, so that findings name the source; clang's analyser looks into the main file alone, so it reads
# hyperattn.h.
# What is suppressed, and why: .clang-tidy, and comments in the sources with NOLINT or cppcheck-suppress.
set -eu
cd "$(dirname "$0")/.."
tool=${1:?analyse.sh: which of cppcheck, clang_tidy, gcc?}

. tests/lib.sh
implementation="-x c -std=c11 -DHYPERATTN_IMPLEMENTATION"

case $tool in
cppcheck)
  need cppcheck cppcheck
  check() { # what it reads ...
    cppcheck --quiet --enable=warning,portability,performance --error-exitcode=1 --std=c11 --language=c \
      --platform=unix64 --inline-suppr "$@"
  }
  for without in SIMD SCAN HYPER JUDGING HALVES TEXTS FEW; do
    check -DHYPERATTN_IMPLEMENTATION "-DHYPERATTN_NO_$without" src/all.h
  done
  # The vector kernels as gcc's preprocessor makes them, without the system's headers: cppcheck's own does
  # not know its way around their macros.
  need gcc gcc
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  gcc $implementation -E src/all.h |
    awk '/^# [0-9]+ "/ { ours = /"src\// } !/^#/ && ours' >"$work/kernels.c"
  check "$work/kernels.c"
  ;;
clang_tidy)
  need clang-tidy clang-tidy
  clang-tidy --quiet --warnings-as-errors='*' hyperattn.h -- $implementation # plain C is in it
  ;;
gcc)
  need gcc gcc
  gcc -fanalyzer -fsyntax-only -xc - </dev/null 2>/dev/null || skip "gcc has no -fanalyzer"
  for build in -DHYPERATTN_NO_SIMD ""; do
    gcc $implementation $build -O2 -fanalyzer -Wall -Wextra -Werror -c src/all.h -o /dev/null
  done
  ;;
*) echo "analyse.sh: no tool $tool" >&2 && exit 1 ;;
esac
