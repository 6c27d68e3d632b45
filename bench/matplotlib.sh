#!/bin/sh
# Names a Python that has matplotlib: sh bench/matplotlib.sh FOLDER. Where python3 has none, that of FOLDER/venv, which it makes.
set -eu
python=python3
python3 -c 'import matplotlib' 2>/dev/null || {
  python=$1/venv/bin/python
  [ -x "$python" ] || python3 -m venv "$1/venv"
  "$python" -c 'import matplotlib' 2>/dev/null || "$python" -m pip install -q matplotlib >&2
}
echo "$python"
