#!/bin/sh
# Tests of the scripts of tests/: test_scripts.sh WHAT WORK
#   run       what run.sh does, says and installs, with commands that only pretend
#   units     units.txt and lib.sh are the only places for what they hold
#   sources   sources.sh finds what it is there to find
#   coverage  coverage.sh on a machine that has less than this one
set -eu
cd "$(dirname "$0")/.."
what=$1
. tests/lib.sh
rm -rf "$2"
mkdir -p "$2"
work=$(cd "$2" && pwd)
fail() {
  echo "$what: $1"
  [ ! -f "$work/said" ] || tail -n 30 "$work/said" | sed 's/^/  said: /'
  [ ! -f "$work/log" ] || sed 's/^/  ran: /' "$work/log"
  exit 1
}

# A PATH of real tools, and of others that write down how they were called. In $work/state: cmocka, network and root
# where the machine has them; broken, a word that makes the command fail.
pretend() {
  mkdir -p "$work/bin" "$work/state"
  for tool in awk basename cat cut date dirname env flock getconf grep mktemp printf rm sed sh sort tail tr wc; do
    path=$(command -v $tool) || continue
    [ ! -f "$path" ] || ln -sf "$path" "$work/bin/$tool"
  done
  for tool in cmake ctest cc apt-get clang clang++ g++ pkg-config sudo id valgrind; do
    cat >"$work/bin/$tool" <<'END'
#!/bin/sh
here=$(dirname "$0")/..
[ "${0##*/}" = id ] || echo "${0##*/} $*" >>"$here/log"
if [ -f "$here/state/broken" ] && echo "${0##*/} $*" | grep -q "$(cat "$here/state/broken")"; then exit 1; fi
case "${0##*/} $*" in
cc*-lcmocka*) [ -f "$here/state/cmocka" ] ;;
id*) [ -f "$here/state/root" ] && echo 0 || echo 1000 ;;
sudo*) exit 1 ;;
apt-get*install*)
  [ -f "$here/state/network" ] && [ -f "$here/state/root" ] || { echo "E: cannot" && exit 100; }
  case $* in *libcmocka-dev*) echo >"$here/state/cmocka" ;; esac
  ;;
apt-get*) [ -f "$here/state/network" ] ;;
*cmake*--build*) echo "[ 50%] Building C object x.c.o" && echo "[100%] Built target test_x" ;;
clang*-dumpversion*) echo 14.0.6 ;;
esac
END
    chmod +x "$work/bin/$tool"
  done
}
runs() { # STATE... -- ARGUMENT...: run.sh on such a machine; its exit status in $code
  rm -rf "$work/state" "$work/log"
  pretend
  while [ "$1" != -- ]; do
    echo "${1#*=}" >"$work/state/${1%%=*}"
    shift
  done
  shift
  code=0
  PATH="$work/bin" CC=cc sh tests/run.sh "$@" >"$work/said" 2>&1 </dev/null || code=$?
}
said() { grep -q -e "$1" "$work/said" || fail "does not say: $1"; }
ran() { grep -q -e "$1" "$work/log" || fail "did not run: $1"; }
never_ran() { ! grep -e "$1" "$work/log" || fail "ran: $1"; }

case $what in
run)
  runs root network --
  [ $code = 0 ] || fail "fails"
  said 'installing libcmocka-dev: '
  ran 'apt-get.* install .*libcmocka-dev$'
  never_ran 'install.*\(clang\|g++\|pkg-config\|valgrind\)'
  said 'stage 1 of 1: quick'
  said 'Built target test_x'
  ran 'cmake --build .*--target quick'
  ran 'ctest .*-LE rest'
  ! grep -q "$(printf '\r')" "$work/said" || fail "moves the cursor in a pipe"

  runs root network cmocka --
  [ $code = 0 ] || fail "fails where cmocka is there"
  never_ran apt-get

  for lacking in root network; do
    runs $lacking --
    [ $code != 0 ] || fail "passes without cmocka"
    said '^    apt-get install -y --no-install-recommends libcmocka-dev$'
    never_ran cmake
  done

  runs root network cmocka -- full
  [ $code = 0 ] || fail "full fails"
  number=0
  for preset in test sanitize ubsan msan fuzz; do
    number=$((number + 1))
    said "stage $number of 5: $preset"
    ran "cmake --preset $preset"
    ran "ctest --preset $preset"
  done
  runs root network cmocka -- rest
  [ $code = 0 ] || fail "rest fails"
  ran 'ctest .*-L rest'
  for preset in sanitize ubsan msan fuzz; do ran "ctest --preset $preset"; done
  runs root network cmocka -- 'all'
  for preset in test sanitize ubsan msan fuzz valgrind cross; do ran "ctest --preset $preset"; done

  for broken in 'cmake -S' 'cmake --build' 'ctest'; do
    runs root network cmocka "broken=$broken" --
    [ $code != 0 ] || fail "passes where $broken fails"
    said 'FAILED: quick'
  done
  runs root network cmocka 'broken=clang -fsanitize' -- msan
  said 'SKIP: msan'
  ;;
units)
  (cd tests && ls test_*.c) | sed 's/^test_//; s/\.c$//; /^llm$/d; /^llamacpp$/d' | sort >"$work/files"
  units tests/units.txt | sort >"$work/listed"
  diff "$work/files" "$work/listed" || fail "units.txt is not what tests/test_*.c is"
  for unit in $(cat "$work/files"); do
    if grep -nw "test_$unit\.c" tests/*.txt tests/*.py tests/*/*.txt; then fail "a second place names $unit"; fi
  done
  find tests -name '*.sh' ! -name lib.sh ! -name test_scripts.sh >"$work/scripts"
  # shellcheck disable=SC2046
  if grep -nE 'exit 77|apt-get (-[^ ]+ )*install|dnf install' $(cat "$work/scripts") .ci/run; then
    fail "skips or installs by itself, not by lib.sh"
  fi
  ;;
sources)
  mkdir -p "$work/tests"
  cp tests/sources.sh tests/sources.awk tests/lib.sh "$work/tests"
  edit() { sed "$1" "$2" >edited && mv edited "$2"; } # EXPRESSION FILE
  says() { # CHECK COMMAND: what the check says, in said, of a copy that the command has changed
    rm -rf "$work/src" "$work/docs" "$work/found"
    cp -R src docs hyperattn.h "$work"
    (cd "$work" && eval "$2" && sh tests/sources.sh "$1" found >said 2>&1)
  }
  for check in made order limits named undefs; do
    says $check '' || :
    cp "$work/said" "$work/before_$check"
  done
  echo >"$work/before_alone"
  finds() { # CHECK MESSAGE COMMAND: the check fails with the message, which is not about the sources as they are
    if says "$1" "$3"; then fail "$1 passes after: $3"; fi
    said "$2"
    ! grep -q "$2" "$work/before_$1" || fail "$1 says '$2' before: $3"
  }
  finds made 'is not made of src/' 'echo "/* more */" >>src/entry.h'
  finds made 'is not made of src/' 'echo >>hyperattn.h'
  finds made 'the picture is old' 'echo >>docs/architecture.svg'
  finds made 'there is no src/missing.h' 'echo "#include \"missing.h\"" >>src/all.h'
  finds made 'conditional of src/ is not closed' 'echo "#if HAI_SIMD" >>src/entry.h'
  finds alone 'compiles to other code' 'edit "s/ 0, .ok./ 0, \"OK\"/" src/api.h'
  finds alone 'src/all.h does not compile' 'echo "#endif" >>src/entry.h'
  finds order 'numbers.h:[0-9]*: hai_run is defined below' \
    'echo "static int hai_x(void) { return !hai_run; }" >>src/numbers.h'
  finds order 'hai_later is defined nowhere' 'echo "static int hai_x(void) { return hai_later(); }" >>src/numbers.h'
  finds order 'HAI_LATER is defined nowhere' 'echo "#define HAI_X HAI_LATER" >>src/numbers.h'
  finds order 'numbers.h:[0-9]*: hai_plan is defined below' 'echo "static int hai_x(hai_plan *p);" >>src/numbers.h'
  finds order 'numbers.h:[0-9]*: HAI_CPU_KNOWN is defined below' \
    'echo "enum { HAI_X = HAI_CPU_KNOWN };" >>src/numbers.h'
  finds order 'numbers.h:[0-9]*: hai_kernel is defined below' 'echo "struct hai_kernel *hai_x;" >>src/numbers.h'
  finds order 'begins or ends in another file' \
    'echo "#if HAI_SIMD" >>src/numbers.h; { echo "#endif"; cat src/elements.h; } >x; mv x src/elements.h'
  finds limits 'best.h:[0-9]*: a source of [0-9]* lines' 'yes "" | head -n 601 >>src/best.h'
  finds limits 'best.h:[0-9]*: a function of 61 lines' \
    '{ echo "static void hai_x(void) {"; yes "" | head -n 59; echo "}"; } >>src/best.h'
  finds limits 'best.h:[0-9]*: a line of 111 columns' 'printf "/*%107s*/\n" x >>src/best.h'
  finds limits 'HAI_X has 7 lines of code' \
    '{ echo "#define HAI_X \\"; yes "x;\\" | head -n 5; echo "x;"; } >>src/best.h'
  finds limits 'HAI_X defines a function in 6 lines' \
    '{ echo "#define HAI_X static int hai_x(void) { \\"; yes "x;\\" | head -n 4; echo "}"; } >>src/best.h'
  finds named 'all.h does not read what src/ holds' 'echo >src/forgotten.h'
  finds named "not all.h's list" 'edit "/^| .random.h/d" docs/architecture.md'
  finds named "not all.h's list" 'edit "/^| .random.h/{h;d;};/^| .kernel.h/G" docs/architecture.md'
  finds undefs '^HAI_X' 'echo "#define HAI_X 1" >>src/licence.h; cmake -P src/amalgamate.cmake'
  ;;
coverage)
  [ "$(uname -sm)" = 'Linux x86_64' ] || skip "only x86-64 Linux can hide what it has"
  export LINES_WANTED=0 BRANCHES_WANTED=0
  for hidden in amx-bf16 avx512; do
    code=0
    HIDE=$hidden sh tests/coverage.sh "$work/$hidden" exact >"$work/said" 2>&1 || code=$?
    [ $code != 77 ] || skip "$(cat "$work/said")"
    [ $code = 0 ] || fail "fails without $hidden"
    said "not counted: the $hidden kernel, [1-9][0-9]* lines: this machine has no $hidden"
    if grep -E '^not (run|taken).*[ (]_tile_[a-z]' "$work/said"; then fail "counts AMX's kernel"; fi
  done
  said 'not counted: the amx-bf16 kernel'
  if grep -E '^not (run|taken).*_mm512_' "$work/said"; then fail "counts AVX-512's kernel"; fi
  said '^not run ' # by exact's tests alone: what this machine has counts on
  if HIDE=amx-bf16 LINES_WANTED=100 sh tests/coverage.sh "$work/amx-bf16" exact >"$work/said" 2>&1; then
    fail "holds no bound"
  fi
  ;;
*) echo "test_scripts.sh: no test $what" >&2 && exit 2 ;;
esac
