#!/bin/sh
# Builds and runs every test: sh tests/run.sh [PRESET]   (default: test, sanitize, ubsan, msan and fuzz)
# "valgrind": plain C under it; "cross": on other machines, emulated; "all": everything.
# Installs what is missing (cmocka, pkg-config, a second compiler) by apt, dnf or brew; says so where it cannot.
set -eu
cd "$(dirname "$0")/.."

sudo=
[ "$(id -u)" = 0 ] || ! command -v sudo >/dev/null 2>&1 || sudo=sudo

has_cmocka() { pkg-config --exists cmocka 2>/dev/null; }
if ! has_cmocka || ! command -v clang++ >/dev/null 2>&1 || ! command -v g++ >/dev/null 2>&1 ||
  ! command -v make >/dev/null 2>&1; then
  if command -v apt-get >/dev/null 2>&1; then
    $sudo apt-get update -qq || true
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      libcmocka-dev pkg-config make g++ clang >/dev/null || true
  elif command -v dnf >/dev/null 2>&1; then
    $sudo dnf install -y -q libcmocka-devel pkgconf make gcc-c++ clang || true
  elif command -v brew >/dev/null 2>&1; then
    brew install -q cmocka pkg-config || true
  fi
fi
has_cmocka || { echo "tests/run.sh: cmocka is missing and could not be installed" >&2; exit 1; }

# clang's sanitizers have a package of their own.
has_msan() { echo 'int main(void) { return 0; }' | clang -fsanitize=memory -x c - -o /dev/null 2>/dev/null; }
if ! has_msan && command -v apt-get >/dev/null 2>&1 && command -v clang >/dev/null 2>&1; then
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev" >/dev/null || true
fi
has_valgrind() { command -v valgrind >/dev/null 2>&1; }

quick="test sanitize ubsan msan fuzz"
[ "${1:-}" != all ] || set -- "$quick valgrind cross"
for preset in ${1:-$quick}; do
  case $preset in
  ubsan | msan) has_msan || { echo "SKIP: $preset: no clang with its sanitizers" && continue; } ;;
  valgrind)
    has_valgrind || { command -v apt-get >/dev/null 2>&1 &&
      $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends valgrind >/dev/null; } || true
    has_valgrind || { echo "SKIP: valgrind is not installed, and cannot be" && continue; }
    ;;
  esac
  cmake --workflow --preset "$preset"
done
