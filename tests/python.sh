#!/bin/sh
# Runs a script of examples/python on a shared library: python.sh SCRIPT LIBRARY WORK. numpy is python3's, or pip puts
# it into WORK. Skipped where there is no Python 3.10 or no numpy; the script skips where it needs more.
set -eu
script=$1 library=$2 work=$3
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
need python3 python3
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || skip "$(python3 --version) is older than 3.10"
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$work" HYPERATTN_LIBRARY="$library"
if ! python3 -c 'import numpy' 2>/dev/null; then
  python3 -m pip --version >/dev/null 2>&1 || install python3-pip || skip "no numpy, and no pip to install it by"
  echo "installing numpy into $work"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --only-binary=:all: \
    --target "$work" numpy || skip "pip cannot install numpy"
fi
exec python3 "$here/../examples/python/$script"
