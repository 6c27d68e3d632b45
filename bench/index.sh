#!/bin/sh
# Records errors, needles and time of decoding over an index, and makes the tables of docs/index.md:
#   sh bench/index.sh [--rounds R] [DIR ..]
# DIR: folders of heads (PATH.q.f16, .k.f16, .v.f16; `llm dump` makes them). Without any, the head of examples/data stands for
# all. Takes some two minutes. The machine should be idle.
set -eu
started_in=$PWD
cd "$(dirname "$0")/.."
rounds=9 folders=
while [ $# -gt 0 ]; do
  case $1 in
    --rounds) rounds=$2 && shift ;;
    *) folders="$folders $(cd "$started_in" && cd "$1" && pwd)" ;;
  esac
  shift
done
bench=build/index/bench/bench_index
cmake -S . -B build/index -DHYPERATTN_EXAMPLES=OFF >/dev/null
cmake --build build/index --target hyperattn_bench_index >/dev/null
rm -f docs/index.csv docs/index-time.csv
one=examples/data/l28h1.q.f16
all=$one
[ ! "$folders" ] || all=$(for folder in $folders; do ls "$folder"/*.q.f16; done)
# shellcheck disable=SC2086 # names of heads
$bench --steps 1024 --tolerance 0.05,0.1,0.2 --csv docs/index.csv $all
for needles in '8192 10' '16384 4' '32768 3'; do
  # shellcheck disable=SC2086
  $bench --steps 1 --n ${needles% *} --needles ${needles#* } --csv docs/index.csv $all
done
# shellcheck disable=SC2086
$bench --time --n 32768 --group 1,4,8 --dim 64 --repeat "$rounds" --csv docs/index-time.csv $all
$bench --time --n 32768 --group 1,4,8 --dim 128 --repeat "$rounds" --csv docs/index-time.csv $one
$bench --time --n 8192,131072 --group 1,4,8 --dim 64,128 --repeat "$rounds" --csv docs/index-time.csv $one
for folder in $folders; do # in the records' heads a folder stands for its heads
  sed -i -E "/^# command/s|( $folder/[^ ]*)+| DIR/*.q.f16|" docs/index.csv docs/index-time.csv
done
PYTHONDONTWRITEBYTECODE=1 python3 bench/index_page.py
