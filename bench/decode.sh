#!/bin/sh
# Records how long decode takes, here and by peers, and makes the tables of docs/decode.md:
#   sh bench/decode.sh [ROUNDS]
# Takes five minutes, and ten more where peers.sh has to install and build what it needs. The machine should be
# idle.
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-9}
cmake -S . -B build/decode -DHYPERATTN_EXAMPLES=OFF >/dev/null
cmake --build build/decode --target hyperattn_bench_decode >/dev/null
groups=$(build/decode/bench/bench_decode --list | grep -v '^asked$' | paste -sd, -)
rm -f docs/decode.csv
build/decode/bench/bench_decode --group "$groups" --repeat "$rounds" --csv docs/decode.csv
sh bench/peers.sh --only decode --rounds "$rounds" --csv docs/decode-peers.csv
PYTHONDONTWRITEBYTECODE=1 python3 bench/decode_page.py
