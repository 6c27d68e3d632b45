#!/bin/sh
# A user's project, built and run: run.sh WAY CMAKE SOURCE WORK. Without arguments: each WAY, one a line. SOURCE is the
# library's folder; each WAY is tried from C and from C++ alone; CMAKE is a program, or the folder that
# "run.sh get VERSION FOLDER" fills with another version (by pip). Exit code 77, and a line that says why, where one
# cannot be had.
set -eu
ways="subdirectory fetch_content twice examples find_package versions found_then_added added_then_found
  include_folder data_folder destdir moved pkg_config exported depended shared readme no_python slow_blas"
# shellcheck disable=SC2086 # ways are words
[ $# -gt 0 ] || { printf '%s\n' $ways && exit; }
. "$(dirname "$0")/../lib.sh"

if [ "$1" = get ]; then
  version=$2 folder=$3 wanted=cmake
  [ "$version" = newest ] || wanted="cmake==$version"
  rm -rf "$folder"
  python3 -m pip --version >/dev/null 2>&1 || skip "CMake $version: no pip to install it by"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary=:all: \
    --target "$folder" "$wanted" || skip "CMake $version: pip cannot install $wanted"
  "$folder/cmake/data/bin/cmake" --version
  exit
fi

way=$1 cmake=$2 source=$3 work=$4
here=$source/tests/consumers
if [ "${cmake#/}" != "$cmake" ] && ! [ -f "$cmake" ]; then
  cmake=$cmake/cmake/data/bin/cmake
  [ -x "$cmake" ] || skip "$way: no $cmake; the test that gets it says why"
fi
rm -rf "$work"
mkdir -p "$work"
prefix="$work/a prefix"
export CC="${CC:-cc}" CXX="${CXX:-c++}"
export CFLAGS=-DHYPERATTN_NO_SIMD CXXFLAGS=-DHYPERATTN_NO_SIMD # a quick build
fail() { echo "$way: $*" >&2; exit 1; }
consumer() { # LANGUAGE OPTION...: builds and runs it
  used=$1
  shift
  rm -rf "$work/build"
  compiler=$([ "$used" != C ] || echo "$CC")
  CC=${compiler:-no-C-here} "$cmake" --no-warn-unused-cli -S "$here" -B "$work/build" -DLANGUAGE="$used" \
    -DHYPERATTN_SOURCE="$source" "$@" && "$cmake" --build "$work/build" &&
    { [ "$used" = NONE ] || "$work/build/consumer"; }
}
languages="C CXX"
has "$CXX" || languages=C
both() { for language in $languages; do consumer "$language" "$@"; done; }
install_library() { # OPTION...: installs the library, for which no compiler is needed
  rm -rf "$work/library"
  CC=no-C-here "$cmake" -S "$source" -B "$work/library" -DHYPERATTN_EXAMPLES=OFF -DHYPERATTN_BENCH=OFF \
    -DCMAKE_INSTALL_PREFIX="$prefix" "$@"
  "$cmake" --install "$work/library"
}
found() { both -DWAY=find_package -DREQUEST=0.2 "$@"; }
compile() { # FLAG...: as they stand on a command line
  eval "$CC -std=c11 $CFLAGS $* '$here/main.c' '$here/library.c' -o '$work/consumer'"
  "$work/consumer"
  [ "$languages" != C ] || return 0
  eval "$CXX -std=c++11 $CXXFLAGS $* -x c++ '$here/main.c' '$here/library.c' -o '$work/consumer'"
  "$work/consumer"
}
by_pkg_config() { # FOLDER of the .pc file
  has pkg-config || { echo "pkg-config is not installed: not tried" && return; }
  export PKG_CONFIG_PATH="$1"
  flags=$(pkg-config --cflags --libs hyperattn)
  compile "$flags"
}
said() { # MESSAGE BY: CMake breaks lines
  tr -s ' \n' ' ' <"$work/said" | grep -q "$1" || { cat "$work/said" && fail "$2 does not say: $1"; }
}
refused() { # REQUEST MESSAGE
  if consumer NONE -DWAY=find_package -DREQUEST="$1" -DCMAKE_PREFIX_PATH="$prefix" >"$work/said" 2>&1; then
    fail "find_package(hyperattn $1) is content"
  fi
  said "$2" "find_package(hyperattn $1)"
}

case $way in
subdirectory | fetch_content) both -DWAY="$way" ;;
twice)
  both -DWAY="$way" -DCMAKE_C_COMPILER="$CC"
  ;;
examples)
  for language in $languages; do
    rm -rf "$work/build"
    "$cmake" -S "$here" -B "$work/build" -DLANGUAGE="$language" -DHYPERATTN_SOURCE="$source" -DWAY=examples
    "$cmake" --build "$work/build" --target own_minimal
    "$cmake" --build "$work/build" --target hyperattn_example_minimal
    "$work/build/minimal" | grep -q '^ok: 1.66' || fail "the example has taken the place of the user's program"
  done
  ;;
find_package)
  install_library
  found -DCMAKE_PREFIX_PATH="$prefix"
  ;;
versions)
  install_library
  version=$(sed -n 's/^#define HYPERATTN_VERSION_[A-Z]* //p' "$source/hyperattn.h" | paste -s -d . -)
  major=${version%%.*} patch=${version##*.} minor=${version#*.}
  minor=${minor%.*}
  exact=$version
  [ "$patch" != 0 ] || exact=$major.$minor
  for request in '' "$major.$minor" "$version" "$version;EXACT" "$exact;EXACT" "$version;OPTIONAL_COMPONENTS;none"; do
    consumer NONE -DWAY=find_package -DREQUEST="$request" -DCMAKE_PREFIX_PATH="$prefix"
  done
  for request in "$major.$((minor + 1))" "$((major + 1))" "$major.$minor.$((patch + 1))" "$major.$minor.99;EXACT"; do
    refused "$request" "version: $version"
  done
  refused "$major.$minor;COMPONENTS;gpu" 'hyperattn has no components, and gpu is required of it'
  ;;
found_then_added | added_then_found)
  install_library
  both -DWAY="$way" -DCMAKE_PREFIX_PATH="$prefix"
  ;;
include_folder)
  for folder in include/attention "$work/elsewhere/a header"; do
    install_library -DCMAKE_INSTALL_INCLUDEDIR="$folder"
    [ ! -e "$prefix/include/hyperattn.h" ] || fail "the header is in include"
    found -DCMAKE_PREFIX_PATH="$prefix"
    by_pkg_config "$prefix/share/pkgconfig"
    rm -r "$prefix"
  done
  ;;
data_folder)
  for folder in lib data/of/all "$work/elsewhere"; do
    install_library -DCMAKE_INSTALL_DATADIR="$folder"
    case $folder in /*) ;; *) folder=$prefix/$folder ;; esac
    found -Dhyperattn_DIR="$folder/cmake/hyperattn"
    by_pkg_config "$folder/pkgconfig"
    rm -r "$prefix"
  done
  install_library -DCMAKE_INSTALL_LIBDIR=lib/of/machine
  found -DCMAKE_PREFIX_PATH="$prefix"
  ;;
destdir)
  for folder in include "$work/final/header"; do
    (
      export DESTDIR="$work/staged"
      install_library -DCMAKE_INSTALL_INCLUDEDIR="$folder"
    )
    [ ! -e "$prefix" ] || fail "DESTDIR is not kept to"
    mv "$work/staged$work"/* "$work" # as a package manager does it
    found -DCMAKE_PREFIX_PATH="$prefix"
    by_pkg_config "$prefix/share/pkgconfig"
    rm -r "$prefix" "$work/staged"
  done
  ;;
moved)
  install_library
  mv "$prefix" "$work/another place"
  found -DCMAKE_PREFIX_PATH="$work/another place"
  by_pkg_config "$work/another place/share/pkgconfig"
  ;;
pkg_config)
  has pkg-config || skip "$way: pkg-config is not installed"
  prefix=$work/prefix # CMake 3.16's FindPkgConfig does not know spaces
  install_library
  by_pkg_config "$prefix/share/pkgconfig"
  both -DWAY=pkg_config
  ;;
exported | depended)
  for language in $languages; do
    rm -rf "$work/parent" "$prefix"
    "$cmake" -S "$here/parent" -B "$work/parent" -DLANGUAGE="$language" -DHYPERATTN_SOURCE="$source" \
      -DCARRIES="$([ "$way" = depended ] || echo ON)" -DCMAKE_INSTALL_PREFIX="$prefix"
    "$cmake" --install "$work/parent"
    consumer "$language" -DWAY=parent -DCMAKE_PREFIX_PATH="$prefix"
  done
  ;;
shared)
  # Built by the project, and installed.
  both -DWAY=shared_added -DCMAKE_C_COMPILER="$CC"
  "$cmake" -S "$source" -B "$work/library" -DHYPERATTN_SHARED=ON -DHYPERATTN_EXAMPLES=OFF -DHYPERATTN_BENCH=OFF \
    -DCMAKE_INSTALL_PREFIX="$prefix" -DCMAKE_INSTALL_LIBDIR=lib
  "$cmake" --build "$work/library"
  "$cmake" --install "$work/library"
  both -DWAY=shared_found -DCMAKE_PREFIX_PATH="$prefix"
  found -DCMAKE_PREFIX_PATH="$prefix"
  sh "$source/tests/shared.sh" "$prefix/lib/libhyperattn.so"
  ;;
readme)
  # The line that needs no preset.
  command=$(sed -n 's/^    \(cmake -S .* run_demo\)$/\1/p' "$source/README.md")
  [ -n "$command" ] || fail "the README has no such line"
  (cd "$source" && cp -R CMakeLists.txt CMakePresets.json cmake bench examples hyperattn.h README.md "$work/")
  cd "$work"
  CFLAGS='' PATH="$(dirname "$cmake"):$PATH" sh -c "$command" | tee said
  grep -q '^  default  *[0-9.]' said || fail "the demo has not run: $command"
  ;;
no_python)
  # What runs the language model says what it lacks before anything is built; nothing else needs it.
  lacking() { # MESSAGE OPTION...
    message=$1
    shift
    if "$cmake" -S "$source" -B "$work/build" "$@" >"$work/said" 2>&1; then fail "configured without it: $*"; fi
    said "$message" "$*"
    said ' install python3 python3-pip python3-venv' "$*"
  }
  missing=-DPython3_EXECUTABLE=/no/python3
  "$cmake" -S "$source" -B "$work/build" $missing
  lacking 'there is no Python' -DHYPERATTN_RUN_LLM=ON $missing
  rm -r "$work/build"
  if "$cmake" --help | grep -q -e --workflow; then lacking 'there is no Python' --preset llm $missing; fi
  python3 -m venv --without-pip "$work/python" || skip "$way: passed but for pip: python3 makes no environment"
  lacking 'by pip, which' -DHYPERATTN_RUN_LLM=ON "-DPython3_EXECUTABLE=$work/python/bin/python3"
  ;;
slow_blas)
  # The language model's engine takes a BLAS that it knows to be fast, by what only that one has; not the reference BLAS.
  for functions in 'sgemm_ cblas_sgemm' 'sgemm_ cblas_sgemm openblas_set_num_threads'; do
    rm -rf "$work/build"
    for function in $functions; do echo "void $function(void);void $function(void) {}"; done >"$work/blas.c"
    "$CC" -shared -fPIC "$work/blas.c" -o "$work/libblas.so"
    "$cmake" -S "$source" -B "$work/build" -DBLA_VENDOR=Generic -DCMAKE_LIBRARY_PATH="$work" >"$work/said"
    grep -q "Found BLAS: $work" "$work/said" || { cat "$work/said" && fail "the stand-in is not found"; }
    taken=$(grep -q 'no fast BLAS' "$work/said" || echo taken)
    case $functions in
    *openblas*) [ "$taken" ] || fail "OpenBLAS is not taken" ;;
    *) [ ! "$taken" ] || fail "the reference BLAS is taken" ;;
    esac
  done
  ;;
*) fail "no such way" ;;
esac
[ "$languages" != C ] || skip "$way: passed from C; there is no C++ compiler"
