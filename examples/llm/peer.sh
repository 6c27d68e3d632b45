#!/bin/sh
# Makes a virtual environment with llama-cpp-python, which is built from source and takes a while, in FOLDER/peer, unless
# there is one; prints its interpreter: sh examples/llm/peer.sh FOLDER
set -eu
python=$1/peer/bin/python
[ -x "$python" ] || python3 -m venv "$1/peer" >&2
"$python" -c "import llama_cpp" 2>/dev/null ||
  CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF" \
    "$python" -m pip install llama-cpp-python >&2
echo "$python"
