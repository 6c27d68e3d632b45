#!/bin/sh
# Records how attention would scale with workers, and makes the tables of docs/scaling.md and its figure:
#   sh bench/scaling.sh [--rounds R]
# Makes build/scaling, with a virtual environment for matplotlib where python3 has none. Takes some two minutes. The machine
# should be idle.
set -eu
cd "$(dirname "$0")/.."
rounds=2
[ "${1-}" != --rounds ] || rounds=$2
bench=build/scaling/bench/bench_scaling
cmake -S . -B build/scaling -DHYPERATTN_EXAMPLES=OFF >/dev/null
cmake --build build/scaling --target hyperattn_bench_scaling >/dev/null
python=$(sh bench/matplotlib.sh build/scaling)
rm -f docs/scaling.csv
$bench --n 8192,32768,131072 --repeat "$rounds" --csv docs/scaling.csv
$bench --n 32768 --mask causal --workers 1 --heads 1 --repeat "$((rounds + 3))" --check --csv docs/scaling.csv
export PYTHONDONTWRITEBYTECODE=1
$python bench/scaling_page.py
$python bench/plot.py --scaling docs/scaling.csv
