#!/bin/sh
# hyperattn.h beside its peers: sh bench/peers.sh [--rounds R] [--long] [--only PATTERN] [--csv FILE] ...   (--help tells)
# Makes build/peers: a virtual environment with torch, OpenBLAS, onnxruntime, OpenVINO, matplotlib and, on AMD's CPUs, zentorch;
# ggml, built from the llama.cpp that llama-cpp-python's source carries; the library by every compiler at hand, and that of an
# earlier commit. What cannot be had is named and left out. A second run takes what the first one made.
set -eu
started_in=$PWD
cd "$(dirname "$0")/.."
peers=$PWD/build/peers
python=$peers/venv/bin/python
mkdir -p "$peers/lib"

say() { echo "peers.sh: $*" >&2; }

environment() {
  [ -x "$python" ] || python3 -m venv "$peers/venv"
  for package in numpy matplotlib torch scipy-openblas32 scikit-build-core onnx onnxruntime openvino; do
    "$python" -c "import importlib.metadata as m; m.version('$package')" 2>/dev/null ||
      "$python" -m pip install -q $package >&2 || say "$package cannot be installed"
  done
  ! grep -q AuthenticAMD /proc/cpuinfo 2>/dev/null || zentorch
}

# AMD's extension runs with the torch of its own version only.
zentorch() {
  "$python" -c 'import zentorch' 2>/dev/null && return
  "$python" -m pip install -q zentorch >&2 || { say "zentorch cannot be installed" && return; }
  version=$("$python" -c 'import importlib.metadata as m; print(".".join(m.version("zentorch").split(".")[:2]))')
  "$python" -m pip install -q --no-deps "torch==$version.*" >&2 || say "no torch $version, which zentorch needs"
}

# The source package leaves out ggml.pc.in, which ggml's build wants, and only to install.
# scikit-build-core lets pip look at the source package without an environment of its own to build it in.
ggml() {
  [ ! -e "$peers/lib/ggml.so" ] || [ -n "$(find bench/peers_ggml.c bench/peers.h -newer "$peers/lib/ggml.so")" ] || return 0
  ls "$peers"/llama_cpp_python-*.tar.gz >/dev/null 2>&1 ||
    "$python" -m pip download -q --no-deps --no-build-isolation --no-binary :all: -d "$peers" llama-cpp-python >&2 || return 1
  archive=$(basename "$peers"/llama_cpp_python-*.tar.gz .tar.gz)
  version=${archive#llama_cpp_python-}
  tar -xzf "$peers/$archive.tar.gz" -C "$peers" "$archive/vendor/llama.cpp/ggml" || return 1
  source=$peers/$archive/vendor/llama.cpp/ggml
  : >"$source/ggml.pc.in"
  cmake -S "$source" -B "$peers/ggml" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DGGML_OPENMP=OFF \
    -DGGML_BLAS=OFF -DGGML_CCACHE=OFF -DGGML_BUILD_TESTS=OFF -DGGML_BUILD_EXAMPLES=OFF >"$peers/ggml.log" 2>&1 &&
    cmake --build "$peers/ggml" --target ggml-cpu >>"$peers/ggml.log" 2>&1 &&
    cc -std=c11 -O2 -shared -fPIC "-DGGML_SOURCE=\"llama-cpp-python $version\"" -I"$source/include" bench/peers_ggml.c \
      -L"$peers/ggml/src" -lggml-cpu -lggml-base -lm "-Wl,-rpath,$peers/ggml/src" -o "$peers/lib/ggml.so"
}

# The library by a compiler and its level, from the header of a folder; NAME is what bench_peers.py calls it.
library() { # NAME FOLDER COMPILER LEVEL [OPTION]
  made=$peers/lib/hyperattn-$1.so
  [ ! -e "$made" ] || [ -n "$(find "$2/hyperattn.h" examples/*.h bench/*.h bench/peers_library.c -newer "$made")" ] || return 0
  "$3" -std=c11 "$4" ${5:+"$5"} -shared -fPIC -pthread -D_POSIX_C_SOURCE=200809L "-I$2" -Iexamples bench/peers_library.c -o "$made"
}

# The header of a commit, to compare with: ee45ed7 is the last without kernels for few queries; what is linear now was its
# default.
before() {
  folder=$peers/$1
  [ -e "$folder/hyperattn.h" ] || {
    mkdir -p "$folder"
    git show "$1:hyperattn.h" >"$folder/hyperattn.h.part" 2>/dev/null || return 1
    mv "$folder/hyperattn.h.part" "$folder/hyperattn.h"
  }
  for compiler in gcc clang; do
    ! command -v $compiler >/dev/null || {
      library "$1" "$folder" $compiler -O2 -Dhyperattn_linear_params=hyperattn_default_params && return 0
    }
  done
  return 1
}

environment
ggml || say "ggml cannot be had (build/peers/ggml.log may tell)"
for compiler in gcc clang; do
  command -v $compiler >/dev/null || continue
  for level in -O1 -O2 -O3; do library $compiler$level . $compiler $level || say "no library by $compiler $level"; done
done
before ee45ed7 || say "no library of commit ee45ed7"

bench=$PWD/bench/bench_peers.py
cd "$started_in"
OPENBLAS_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 exec "$python" "$bench" "$@"
