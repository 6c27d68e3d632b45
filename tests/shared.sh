#!/bin/sh
# What the shared library exports is the interface, as src/api.h declares it, and nothing else: shared.sh LIBRARY
# Names that begin with _ are the toolchain's.
set -eu
library=$1
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
has nm || skip "nm is not installed"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n 's/^HYPERATTN_API [^(]*[ *]\([a-z_]*\)(.*/\1/p' "$here/../src/api.h" | sort >"$work/interface"
[ "$(wc -l <"$work/interface")" -eq "$(grep -c '^HYPERATTN_API ' "$here/../src/api.h")" ] || {
  echo "shared.sh does not understand each declaration of src/api.h" && exit 1
}
nm -D --defined-only "$library" | awk '$3 !~ /^_/ { print $3 }' | sort >"$work/exported"
diff "$work/exported" "$work/interface" || { echo "what is exported (<) is not what is declared (>)" && exit 1; }
echo "$(wc -l <"$work/exported") functions"
