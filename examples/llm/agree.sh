#!/bin/sh
# The engine beside llama.cpp: sh examples/llm/agree.sh BINARY FOLDER [AGREE_OPTION ...]   (agree.py tells)
# FOLDER holds the model and the texts (run.py puts them there); a virtual environment with llama-cpp-python, which is
# built from source and takes a while, is made in it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
llm=$1 folder=$2
shift 2
model=$(ls "$folder"/*.gguf 2>/dev/null | head -n 1)
[ -n "$model" ] || { echo "agree.sh: no model in $folder: run the llm preset first" >&2; exit 1; }
python=$folder/peer/bin/python
[ -x "$python" ] || python3 -m venv "$folder/peer"
"$python" -c "import llama_cpp" 2>/dev/null ||
  CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF" \
    "$python" -m pip install llama-cpp-python
exec "$python" "$here/agree.py" --llm "$llm" --model "$model" --text "$folder/opticks.txt" "$@"
