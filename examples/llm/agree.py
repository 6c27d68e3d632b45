"""Compares the engine with llama.cpp on the same file and text: tokens, perplexity, and the speed of prefill.

    PYTHON examples/llm/agree.py --llm build/llm/examples/llm/llm --model M.gguf --text TEXT [--speed N] [--threads T]

PYTHON has llama-cpp-python (cmake --build build/llm --target llm_agree makes one and runs this). Fails if tokens differ
or perplexities of 2048 tokens differ by more than 0.5 %. --speed N also times the prefill of N tokens, in turns:
here exact (or --attention), there with flash attention; neither computes the window's logits within that time.
"""

import argparse
import csv
import io
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp as lc

from peer import Peer, be_silent

TOLERANCE = 0.005
TRICKY = pathlib.Path(__file__).parent / "texts" / "tricky.txt"


def ours(options: argparse.Namespace, command: str, text: str, *more: str) -> str:
    call = [options.llm, command, "--model", options.model, "--text", text, "--threads", str(options.threads), *more]
    return subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout


def compare_tokens(options: argparse.Namespace, peer: Peer, name: str, text: bytes) -> list[int]:
    theirs = peer.tokens(text)
    with tempfile.NamedTemporaryFile() as file:
        file.write(text)
        file.flush()
        here = [int(line) for line in ours(options, "tokens", file.name, "--context", str(len(theirs))).split()]
    if here != theirs:
        at = next(i for i, (a, b) in enumerate(zip(here, theirs)) if a != b)
        sys.exit(f"agree.py: {name}: tokens differ from number {at} on: {here[at : at + 5]}, {theirs[at : at + 5]}")
    print(f"{name}: the same {len(theirs)} tokens")
    return theirs


def perplexity(options: argparse.Namespace, n: int, *more: str) -> dict[str, str]:
    out = ours(options, "perplexity", options.text, "--csv", "--cycle", "--context", str(n), *more)
    return next(csv.DictReader(io.StringIO(out)))


def speed(options: argparse.Namespace, tokens: list[int]) -> None:
    peer = Peer(options.model, options.speed, options.threads, True, options.rope_base)
    more = ["--attention", options.attention] + (["--rope-base", str(options.rope_base)] if options.rope_base else [])
    window = (tokens * (options.speed // len(tokens) + 1))[: options.speed]
    best = {"here": 0.0, "llama.cpp": 0.0}
    for _ in range(options.rounds):
        best["here"] = max(best["here"], float(perplexity(options, options.speed, *more)["tokens_per_second"]))
        best["llama.cpp"] = max(best["llama.cpp"], options.speed / peer.seconds(window))
    print(
        f"prefill of {options.speed} tokens, {options.threads} threads, best of {options.rounds}: {options.attention} "
        f"{best['here']:.0f} tokens a second, llama.cpp {best['llama.cpp']:.0f} (flash attention): "
        f"{best['here'] / best['llama.cpp']:.2f}x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--speed", type=int, metavar="N")
    parser.add_argument("--attention", default="exact", help="of --speed, here")
    parser.add_argument("--rope-base", type=float, default=0, help="of --speed, in both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    be_silent()
    print(f"llama-cpp-python {lc.__version__}, {pathlib.Path(options.model).name}, {pathlib.Path(options.text).name}")
    peer = Peer(options.model, 2048, options.threads, flash=False)
    compare_tokens(options, peer, "tricky text", TRICKY.read_bytes())
    tokens = compare_tokens(options, peer, "the text", pathlib.Path(options.text).read_bytes())
    theirs, here = peer.perplexity(tokens[:2048]), perplexity(options, 2048)
    worst = 0.0
    for what, a, b in zip(("whole", "second half"), (here["perplexity"], here["second_half"]), theirs):
        worst = max(worst, abs(float(a) / b - 1))
        print(f"perplexity of 2048 tokens, {what}: {float(a):.4f}, llama.cpp {b:.4f}: {float(a) / b - 1:+.3%}")
    if options.speed:
        speed(options, tokens)
    if worst > TOLERANCE:
        sys.exit(f"agree.py: perplexities differ by more than {TOLERANCE:.1%}")


if __name__ == "__main__":
    main()
