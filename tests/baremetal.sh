#!/bin/sh
# Runs the library on an emulated Cortex-M, without an operating system, heap or C library: baremetal.sh TARGET WORK
# Prints flash, RAM and stack, and flash without this or that part. Without arguments: the targets, one a line.
# Installs what is missing, or is skipped (lib.sh).
set -eu
cd "$(dirname "$0")/baremetal"
. ../lib.sh

# target | gcc's flags | QEMU's board
table() {
  cat <<'END'
cortex_m4f | -mcpu=cortex-m4 -mfpu=fpv4-sp-d16 | mps2-an386
cortex_m7  | -mcpu=cortex-m7 -mfpu=fpv5-sp-d16 | mps2-an500
END
}
if [ $# = 0 ]; then
  table | sed 's/ .*//'
  exit
fi
target=$1 data=$PWD/../data/golden/full
mkdir -p "$2"
work=$(cd "$2" && pwd)
row=$(table | grep "^$target ") || { echo "baremetal.sh: no target $target" >&2; exit 1; }
column() { echo "$row" | cut -d '|' -f "$1" | sed 's/^ *//; s/ *$//'; }
need arm-none-eabi-gcc gcc-arm-none-eabi
need qemu-system-arm qemu-system-arm

cd "$work"
source=$OLDPWD
cc="arm-none-eabi-gcc $(column 2) -mthumb -mfloat-abi=hard -ffreestanding -Os -I$source/../.. -I$source"
library() { # NAME FLAG...
  name=$1
  shift
  $cc -Wall -Wextra -Wconversion -Wdouble-promotion -Werror -fstack-usage -include memory.h "$@" \
    -DHYPERATTN_IMPLEMENTATION -x c -c "$source/../../hyperattn.h" -o "$name.o"
}
# What engines ask for and firmware seldom needs.
engines="BUILDERS COST CUSTOM FEW INDEX MANY MASKS PAGES SCAN SINKS SLIDING SOFTCAP"
without() { for part; do echo "-DHYPERATTN_NO_$part"; done; }
library library
library lean $(without $engines)
$cc -Wall -Wextra -Werror -c "$source/firmware.c" -o firmware.o
for which in library lean; do # what the host computes with the same parts
  mkdir -p $which.host
  [ $which = lean ] && parts=$(without $engines) || parts=
  ${CC:-cc} -O1 $parts -I"$source/../.." "$source/expected.c" -o $which.host/expected
  $which.host/expected "$data" $which.host/expected.f32
  $cc -I"$data" -I$which.host -c "$source/fixture.S" -o fixture.o
  $cc -nostdlib -static -T "$source/mps2.ld" firmware.o $which.o fixture.o -lgcc -o $which.elf
done

# Outside itself the library calls the two memory functions and the compiler's 64-bit helpers, never double arithmetic.
arm-none-eabi-nm -u library.o | awk '{print $2}' | sort >undefined
if grep -Ev '^(fw_)?mem(cpy|set)$|^__aeabi_(u?l(div|2f).*|u?ldivmod|f2u?lz|l(lsl|lsr|asr))$' undefined; then
  echo "the library must not need these"
  exit 1
fi
bytes() { arm-none-eabi-size "$1.o" | awk 'NR == 2 {print $1}'; }
arm-none-eabi-size library.o lean.o | awk -v target="$target" '
NR == 2 {print target ": library, gcc -Os: " $1 " bytes of flash, " $2 + $3 " of RAM beside the workspace"}
NR == 3 {print "  without what mainly engines need: " $1 " bytes (at most 32768)"}
NR == 3 && $1 > 32768 || $2 + $3 > 0 {failed = 1}
END {exit failed}'
for part in $engines LONG_SUMS TEXTS HALVES JUDGING HYPER; do
  library part $(without $part)
  echo "  without $part: $(bytes part) bytes"
done
echo "without what mainly engines need and"
for parts in LONG_SUMS TEXTS HALVES JUDGING HYPER "HALVES TEXTS" "HALVES JUDGING TEXTS" "HALVES HYPER TEXTS" \
  "HALVES HYPER LONG_SUMS TEXTS"; do
  library part $(without $engines $parts)
  echo "  without $parts: $(bytes part) bytes"
done
echo "largest frames: $(sort -t "$(printf '\t')" -k 2 -nr library.su | head -3 |
  awk -F '\t' '{sub(/.*:/, "", $1); printf "%s%s %s", sep, $1, $2; sep = ", "}')"
for which in library lean; do
  timeout 600 qemu-system-arm -M "$(column 3)" -nographic -monitor none -serial none \
    -semihosting-config enable=on,target=native -kernel $which.elf
done
