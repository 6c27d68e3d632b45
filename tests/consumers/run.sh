#!/bin/sh
# run.sh WAY SOURCE BUILD WORK: builds and runs the consumer in WORK, by add_subdirectory, find_package, pkg_config or
# plain; SOURCE is the project, BUILD its configured build folder.
set -eu
way=$1 source=$2 build=$3 work=$4
here=$source/tests/consumers
rm -rf "$work"
mkdir -p "$work"
case $way in
  find_package | pkg_config) cmake --install "$build" --prefix "$work/prefix" ;;
esac
case $way in
  add_subdirectory | find_package)
    cmake -S "$here" -B "$work/build" -DWAY="$way" -DHYPERATTN_SOURCE="$source" -DCMAKE_PREFIX_PATH="$work/prefix"
    cmake --build "$work/build"
    "$work/build/consumer"
    ;;
  pkg_config)
    flags=$(PKG_CONFIG_PATH="$work/prefix/share/pkgconfig" pkg-config --cflags --libs hyperattn)
    # shellcheck disable=SC2086 -- flags are words
    "$CC" -std=c11 $flags "$here/main.c" "$here/library.c" -o "$work/consumer"
    "$work/consumer"
    ;;
  plain)
    cp "$source/hyperattn.h" "$work/"
    "$CC" -std=c11 -I"$work" "$here/main.c" "$here/library.c" -o "$work/consumer"
    "$work/consumer"
    ;;
esac
