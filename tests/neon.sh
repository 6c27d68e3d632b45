#!/bin/sh
# Builds the unit tests for aarch64 and runs them under qemu-user: neon.sh WORK.
# Exit code 77, and a line that says why, where the tools are missing and cannot be installed.
set -eu
cd "$(dirname "$0")/.."
work=${1:-build/neon}
mkdir -p "$work"
work=$(cd "$work" && pwd)
skip() { echo "SKIP: NEON under qemu: $1"; exit 77; }

if ! command -v aarch64-linux-gnu-gcc >/dev/null 2>&1 || ! command -v qemu-aarch64-static >/dev/null 2>&1; then
  command -v apt-get >/dev/null 2>&1 || skip "no cross compiler, no qemu, no apt-get"
  [ "$(id -u)" = 0 ] || skip "no cross compiler or qemu, and not root"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static >/dev/null || skip "apt-get install failed"
fi

# cmocka for aarch64 comes from its Debian package, unpacked beside the build, not installed.
if ! ls "$work"/cmocka/usr/lib/aarch64-linux-gnu/libcmocka.so >/dev/null 2>&1; then
  foreign=
  dpkg --print-foreign-architectures | grep -q arm64 || foreign=arm64
  [ -z "$foreign" ] || { dpkg --add-architecture arm64 && apt-get update -qq; }
  (cd "$work" && apt-get download -qq libcmocka0:arm64 libcmocka-dev:arm64 >/dev/null 2>&1) || true
  [ -z "$foreign" ] || { dpkg --remove-architecture arm64 && apt-get update -qq; }
  ls "$work"/libcmocka0*.deb >/dev/null 2>&1 || skip "no cmocka for arm64"
  for package in "$work"/*.deb; do dpkg -x "$package" "$work/cmocka"; done
fi

lib=$work/cmocka/usr/lib/aarch64-linux-gnu
run() { # run NAME ARCHITECTURE [WHICH]
  aarch64-linux-gnu-gcc -std=c11 -D_POSIX_C_SOURCE=200809L -O2 -march="$2" -Wall -Wextra -I. -Itests \
    -I"$work/cmocka/usr/include" "tests/test_$1.c" -o "$work/test_$1" -L"$lib" -lcmocka -lm
  qemu-aarch64-static -cpu max -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH="$lib" "$work/test_$1" ${3:+"$3"}
}
for name in numbers exact hyper edges golden; do run "$name" armv8-a; done
run dtypes armv8-a '*exact*'
run dtypes armv8.2-a+bf16 '*bf16*' # the kernel of bfloat16 products
