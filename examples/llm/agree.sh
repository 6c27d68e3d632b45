#!/bin/sh
# The engine beside llama.cpp: sh examples/llm/agree.sh BINARY FOLDER [AGREE_OPTION ...]   (agree.py tells)
# FOLDER holds the model and the texts (run.py puts them there); peer.sh makes an environment with llama.cpp in it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
llm=$1 folder=$2
shift 2
model=$(ls "$folder"/*.gguf 2>/dev/null | head -n 1)
[ -n "$model" ] || { echo "agree.sh: no model in $folder: run the llm preset first" >&2; exit 1; }
python=$(sh "$here/peer.sh" "$folder")
exec "$python" "$here/agree.py" --llm "$llm" --model "$model" --text "$folder/opticks.txt" "$@"
