#!/bin/sh
# Proves that the arithmetic of sizes does not overflow: sh tests/cbmc/run.sh [WORK [PROOF..]]   (LIMIT=300 s a proof)
# Debian 12 has no cbmc, so Debian 11's is unpacked in WORK where there is none, or this is skipped (lib.sh). A proof that runs out of time fails.
# Not proved, since CBMC does not finish on products and quotients of several 31-bit numbers: hai_resolve as a whole
# (its layout and regions at every limit are in test_bounds.c).
set -eu
cd "$(dirname "$0")"
. ../lib.sh
here=$PWD limit=${LIMIT:-300} failed=0 passed=0
mkdir -p "${1:-../../build/cbmc}"
work=$(cd "${1:-../../build/cbmc}" && pwd)
[ $# = 0 ] || shift

cbmc=$(command -v cbmc || echo "$work/unpacked/usr/bin/cbmc")
export LD_LIBRARY_PATH="$work/unpacked/usr/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
if ! "$cbmc" --version >/dev/null 2>&1; then
  has apt-get || skip "not installed, and no apt-get"
  cd "$work" && mkdir -p lists/partial cache/archives/partial
  apt-get indextargets --format '$(ORIGIN) deb [trusted=yes] $(REPO_URI) bullseye main' 'Created-By: Packages' |
    sed -n 's/^Debian //p' | grep -v security | sort -u >sources.list
  options="-qq -o Dir::Etc::SourceList=$work/sources.list -o Dir::Etc::SourceParts=/dev/null
    -o Dir::State::Lists=$work/lists -o Dir::Cache=$work/cache -o APT::Sandbox::User="
  { apt-get $options update && apt-get $options download cbmc minisat; } >apt.log 2>&1 || skip "apt-get cannot get it"
  for package in ./*.deb; do dpkg -x "$package" unpacked; done
  "$cbmc" --version >/dev/null 2>&1 || skip "Debian 11's does not run here"
fi

cd "$here"
[ $# -gt 0 ] || set -- $(sed -n 's/^void \(prove_[a-z_]*\)(void).*/\1/p' sizes.c)
for proof; do
  start=$(date +%s) code=0
  timeout "$limit" "$cbmc" sizes.c -I ../.. --function "$proof" --bounds-check --pointer-check --div-by-zero-check \
    --signed-overflow-check --unsigned-overflow-check --conversion-check --pointer-overflow-check --undefined-shift-check \
    --unwind 6 --unwindset hai_kernel_of.0:8,hai_most_phases.0:34,hai_rows_paged.0:34 --unwinding-assertions \
    --slice-formula --drop-unused-functions >"$work/$proof.log" 2>&1 || code=$?
  seconds=$(($(date +%s) - start))
  case $code in
    0) word=SUCCESSFUL passed=$((passed + 1)) ;;
    10) word=FAILED ;;
    124) word="out of time" ;;
    *) word="error $code" ;;
  esac
  echo "$proof: VERIFICATION $word ($seconds s)"
  if [ "$code" != 0 ]; then
    failed=$((failed + 1))
    grep -E 'FAILURE|rror' "$work/$proof.log" | head -n 8
  fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
