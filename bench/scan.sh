#!/bin/sh
# Records time and error of the scan, and makes the tables of docs/scan.md and its figure:
#   sh bench/scan.sh [--rounds R] [--short] [DIR ..]
# DIR: folders of heads (PATH.q.f16, .k.f16, .v.f16; `llm dump` makes them); the first one's are also repeated to 32768
# tokens. Without any, the head of examples/data stands for all. --short: 2048 tokens, one round, and into build/scan/docs, to
# try this out. Makes build/scan, with a virtual environment for matplotlib where python3 has none. The machine should be
# idle.
set -eu
started_in=$PWD
cd "$(dirname "$0")/.."
rounds=5 short= into=docs folders=
while [ $# -gt 0 ]; do
  case $1 in
    --rounds) rounds=$2 && shift ;;
    --short) short=1 into=build/scan/docs ;;
    *) folders="$folders $(cd "$started_in" && cd "$1" && pwd)" ;;
  esac
  shift
done

bench=build/scan/bench/bench_scan
cmake -S . -B build/scan -DHYPERATTN_EXAMPLES=OFF >/dev/null
cmake --build build/scan --target hyperattn_bench_scan >/dev/null
python=$(sh bench/matplotlib.sh build/scan)

own= longer=16384,32768 longest=131072 lengths=8192,16384,32768
if [ "$short" ]; then
  own='--n 2048' longer=2048 longest=2048 lengths=2048 rounds=1
  mkdir -p $into
  cp docs/scan.md $into
fi
rm -f $into/scan.csv $into/scan-needles.csv
time_points() { $bench --repeat "$rounds" --csv $into/scan.csv "$@"; }

one=examples/data/l28h1.q.f16
all=scan:128:0.05,default,scan:128:0.2,scan:32:0,scan:64:0,scan:128:0,hyper:0.1
all=$all,linear:0.5,linear,linear:2,paper:0.5,paper,paper:2
few=default,hyper:0.1,linear,paper
set -- $folders
first=$one
[ $# -eq 0 ] || first=$(ls "$1"/*.q.f16)
time_points $own --point $all $first gauss
for folder; do
  [ "$folder" = "$1" ] || time_points $own --point $all "$folder"/*.q.f16
done
time_points $own --mask full --point $all $one gauss
time_points --n $longer --point $few $first
time_points --n $longest --mask both --point $few $one
for isa in scalar avx2 avx512 neon; do # those that the machine has not say so
  time_points $own --isa $isa --point default,scan:64:0 $one || true
done
count=$(echo "$first" | wc -l)
$bench --n $lengths --needles $(((100 + count - 1) / count)) --point default,scan:64:0,scan:128:0,hyper:0.1,linear \
  --csv $into/scan-needles.csv $first

for folder; do # in the records' heads a folder stands for its heads
  sed -i -E "/^# command/s|( $folder/[^ ]*)+| DIR/*.q.f16|; /^# command/s|--csv $into/|--csv docs/|" $into/scan*.csv
done

export PYTHONDONTWRITEBYTECODE=1
$python bench/scan_page.py $into
$python bench/plot.py --scan $into/scan.csv --into $into
