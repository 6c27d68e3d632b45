"""Compares the engine with llama.cpp on the same file and text: tokens, perplexity, and the speed of prefill.

    PYTHON examples/llm/agree.py --llm build/llm/examples/llm/llm --model M.gguf --text TEXT [--speed N] [--threads T]

PYTHON has llama-cpp-python (cmake --build build/llm --target llm_agree makes one and runs this). Fails if tokens differ
or perplexities of 2048 tokens differ by more than 0.5 %. --speed N also times the prefill of N tokens, in turns:
here exact (or --attention), there with flash attention; neither computes the window's logits within that time.
"""

import argparse
import csv
import ctypes
import io
import math
import pathlib
import subprocess
import sys
import tempfile
import time

import llama_cpp as lc
import numpy as np

TOLERANCE = 0.005
TRICKY = pathlib.Path(__file__).parent / "texts" / "tricky.txt"
BATCH = 512


class Peer:
    """llama.cpp through its C interface: a context of n tokens, two threads or as many as given."""

    def __init__(self, model: str, n: int, threads: int, flash: bool, rope_base: float = 0):
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n, BATCH, BATCH
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(flash)
        params.rope_freq_base = rope_base  # 0: the model's
        weights = lc.llama_model_default_params()
        weights.use_extra_bufts = False  # its AMX path crashes in a virtual machine that announces AMX without having it
        self.weights = lc.llama_model_load_from_file(model.encode(), weights)
        self.context = lc.llama_init_from_model(self.weights, params)
        self.vocab = lc.llama_model_get_vocab(self.weights)
        self.n_vocab = lc.llama_vocab_n_tokens(self.vocab)
        self.batch = lc.llama_batch_init(BATCH, 0, 1)

    def tokens(self, text: bytes) -> list[int]:
        room = (lc.llama_token * (len(text) + 8))()
        count = lc.llama_tokenize(self.vocab, text, len(text), room, len(room), False, False)
        return list(room[:count])

    def run(self, tokens: list[int], with_logits: bool):
        """Yields, per batch, its first position and its rows of logits (none without with_logits)."""
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)
        for first in range(0, len(tokens), BATCH):
            part = tokens[first : first + BATCH]
            self.batch.n_tokens = len(part)
            for i, token in enumerate(part):
                self.batch.token[i], self.batch.pos[i] = token, first + i
                self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, 0
                self.batch.logits[i] = with_logits or first + i == len(tokens) - 1
            if lc.llama_decode(self.context, self.batch):
                sys.exit("agree.py: llama.cpp cannot decode")
            rows = np.empty((0, 0))
            if with_logits:
                pointer = ctypes.cast(lc.llama_get_logits(self.context), ctypes.POINTER(ctypes.c_float))
                rows = np.ctypeslib.as_array(pointer, shape=(len(part), self.n_vocab)).astype(np.float64)
            yield first, rows

    def perplexity(self, tokens: list[int]) -> tuple[float, float]:
        """Perplexity of the whole window and of its second half, counted as `llm perplexity` does."""
        losses = np.zeros(len(tokens) - 1)
        for first, rows in self.run(tokens, True):
            for i, row in enumerate(rows[: len(losses) - first]):
                most = row.max()
                losses[first + i] = most + math.log(np.exp(row - most).sum()) - row[tokens[first + i + 1]]
        return math.exp(losses.mean()), math.exp(losses[len(tokens) // 2 - 1 :].mean())

    def seconds(self, tokens: list[int]) -> float:
        begin = time.perf_counter()
        for _ in self.run(tokens, False):
            pass
        return time.perf_counter() - begin


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
    silent = lc.llama_log_callback(lambda level, text, data: None)
    lc.llama_log_set(silent, ctypes.c_void_p(0))
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
