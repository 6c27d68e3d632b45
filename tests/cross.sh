#!/bin/sh
# Builds unit tests for another machine and runs them: cross.sh TARGET WORK TEST[:FILTER]...
# Without arguments: the targets, one a line. Installs what is missing, or is skipped (lib.sh).
set -eu
cd "$(dirname "$0")/.."
. tests/lib.sh

# target | Debian packages | compiler, flags | what runs a program; slowest first. armv7, i386 and wasm have a size_t
# of 32 bits, s390x is big-endian. fast: floats may keep more digits than they have, as gcc lets them without -std=c11
# on x87 and s390x; that is what users get, and the harder case.
table() {
  cat <<'END'
s390x        | gcc-s390x-linux-gnu libc6-dev-s390x-cross         | s390x-linux-gnu-gcc -fexcess-precision=fast| qemu-s390x
ppc64le      | gcc-powerpc64le-linux-gnu libc6-dev-ppc64el-cross | powerpc64le-linux-gnu-gcc                  | qemu-ppc64le
riscv64      | gcc-riscv64-linux-gnu libc6-dev-riscv64-cross     | riscv64-linux-gnu-gcc                      | qemu-riscv64
armv7        | gcc-arm-linux-gnueabihf libc6-dev-armhf-cross     | arm-linux-gnueabihf-gcc                    | qemu-arm
aarch64      | gcc-aarch64-linux-gnu libc6-dev-arm64-cross       | aarch64-linux-gnu-gcc                      | qemu-aarch64
aarch64_bf16 | gcc-aarch64-linux-gnu libc6-dev-arm64-cross       | aarch64-linux-gnu-gcc -march=armv8.2-a+bf16| qemu-aarch64 -cpu max
i386         | gcc-i686-linux-gnu libc6-dev-i386-cross           | i686-linux-gnu-gcc -fexcess-precision=fast | qemu-i386
i386_sse2    | gcc-i686-linux-gnu libc6-dev-i386-cross           | i686-linux-gnu-gcc -msse2 -mfpmath=sse     | qemu-i386
windows      | gcc-mingw-w64-x86-64 wine wine64                  | x86_64-w64-mingw32-gcc                     | wine
wasm         | emscripten nodejs                                 | emcc                                       | node
wasm_simd128 | emscripten nodejs                                 | emcc -msimd128                             | node
END
}
if [ $# = 0 ]; then
  table | sed 's/ .*//'
  exit
fi

target=$1
mkdir -p "$2"
work=$(cd "$2" && pwd)
shift 2

row=$(table | grep "^$target ") || { echo "cross.sh: no target $target" >&2; exit 1; }
column() { echo "$row" | cut -d '|' -f "$1" | sed 's/^ *//; s/ *$//'; }
packages=$(column 2) cc=$(column 3) run=$(column 4) suffix=
case $run in
qemu-*) packages="$packages qemu-user-static" cc="$cc -static" ;;
wine)
  suffix=.exe cc="$cc -static -D__USE_MINGW_ANSI_STDIO=1"
  export WINEPREFIX="$work/wine" WINEDEBUG=-all WINEDLLOVERRIDES='mscoree=;mshtml=' # no downloads of its own
  ;;
node) # cmocka.h would define uintptr_t; Debian's emcc has its modules in a folder that only Debian's node knows
  suffix=.js cc="$cc -sNODERAWFS=1 -sSINGLE_FILE=1 -sALLOW_MEMORY_GROWTH=1 -D_UINTPTR_T -D_UINTPTR_T_DEFINED"
  export NODE_PATH=/usr/share/nodejs
  ;;
esac
emulator() { # Debian's names of the static qemus, where these are the ones
  if ! has "${run%% *}" && has "${run%% *}-static"; then run=$(echo "$run" | sed 's/^[^ ]*/&-static/'); fi
  has "${run%% *}"
}

if ! has "${cc%% *}" || ! emulator; then
  install xz-utils $packages || skip "no ${cc%% *} or ${run%% *}"
  { has "${cc%% *}" && emulator; } || skip "no ${cc%% *} or ${run%% *} in $packages"
fi

# Several targets may run at a time, and share one cmocka.
shared=$(dirname "$work")/shared
mkdir -p "$shared"
locked() { if has flock; then flock "$shared" "$@"; else "$@"; fi; }

# cmocka is built from the distribution's source: a foreign package is not to be had for every target. apt works in
# a folder of ours and leaves its own lists as they are.
if ! ls "$shared"/cmocka-*/src/cmocka.c >/dev/null 2>&1; then
  has apt-get || skip "no apt-get to get cmocka's source"
  cat >"$shared/get.sh" <<'END'
set -eu
cd "$1"
! ls cmocka-*/src/cmocka.c >/dev/null 2>&1 || exit 0
mkdir -p apt/lists/partial apt/cache/archives/partial
apt-get indextargets --format '$(ORIGIN) deb-src $(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
  sed -n 's/^Debian //p; s/^Ubuntu //p' | sort -u >apt/sources.list
options="-qq -o Dir::Etc::SourceList=$1/apt/sources.list -o Dir::Etc::SourceParts=/dev/null
  -o Dir::State::Lists=$1/apt/lists -o Dir::Cache=$1/apt/cache -o APT::Sandbox::User="
apt-get $options update
apt-get $options source --download-only cmocka
tar xf cmocka_*.orig.tar.*z
END
  locked sh "$shared/get.sh" "$shared" >"$work/cmocka.log" 2>&1 || skip "cmocka's source cannot be had"
fi
cmocka=$(dirname "$(ls -d "$shared"/cmocka-*/src)")
$cc -w -O1 -DHAVE_INTTYPES_H -DHAVE_SIGNAL_H -DHAVE_SNPRINTF -DHAVE_VSNPRINTF -I"$cmocka/include" \
  -c "$cmocka/src/cmocka.c" -o "$work/cmocka.o"

# A program that does nothing: does the emulator work at all, and does this machine need it (i386)?
echo 'int main(void) { return 0; }' >"$work/nothing.c"
$cc "$work/nothing.c" -o "$work/nothing$suffix"
case $target in i386*) ! "$work/nothing" 2>/dev/null || run= ;; esac
$run "$work/nothing$suffix" >"$work/nothing.log" 2>&1 || skip "$run runs no program here"

for test; do # TEST:FILTER runs those of its cases whose names match
  name=${test%%:*} filter=${test#"${test%%:*}"} program=$work/test_${test%%:*}$suffix
  $cc -std=c11 -D_POSIX_C_SOURCE=200809L -D_FILE_OFFSET_BITS=64 -DHYPERATTN_IMPLEMENTATION -O2 -Wall -Wextra -Werror -I. -Itests \
    -I"$cmocka/include" "tests/test_$name.c" "$work/cmocka.o" -o "$program" -lm
  $run "$program" ${filter:+"${filter#:}"}
done
