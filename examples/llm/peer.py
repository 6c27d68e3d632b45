"""llama.cpp, for comparisons: through llama-cpp-python's C interface, in its own process.

    PYTHON examples/llm/peer.py --model M.gguf --text TEXT [--lengths N,N] [--steps N] [--context N] [--threads T]

Times decoding as `llm decode` does and prints the same table as comma-separated values: flash attention, keys and values in
f16. The text's first tokens are read; a longer cache repeats their keys and values, moved to further positions.
peer.sh makes a PYTHON that has llama-cpp-python.
"""

import argparse
import ctypes
import math
import pathlib
import sys
import time

import llama_cpp as lc
import numpy as np

BATCH = 512


def be_silent() -> None:
    be_silent.callback = lc.llama_log_callback(lambda level, text, data: None)  # must outlive every call
    lc.llama_log_set(be_silent.callback, ctypes.c_void_p(0))


class Peer:
    """llama.cpp through its C interface: a context of n tokens, two threads or as many as given."""

    def __init__(self, model: str, n: int, threads: int, flash: bool, rope_base: float = 0, n_sequences: int = 1):
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n, BATCH, BATCH
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(flash)
        params.rope_freq_base = rope_base  # 0: the model's
        params.n_seq_max, params.kv_unified = n_sequences, True
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
                sys.exit("peer.py: llama.cpp cannot decode")
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


class Decoder(Peer):
    """Steps of one token after caches of several lengths."""

    def __init__(self, model: str, n: int, threads: int, window: list[int]):
        super().__init__(model, n, threads, True, n_sequences=2)
        self.memory, self.last = lc.llama_get_memory(self.context), window[-1]
        self.seconds(window)
        self.state = (ctypes.c_uint8 * lc.llama_state_seq_get_size(self.context, 0))()
        lc.llama_state_seq_get_data(self.context, self.state, len(self.state), 0)
        self.n_window = self.n_past = len(window)

    def fill(self, n: int) -> None:
        """Makes the cache hold n tokens: repetitions come as a second sequence, are moved, and join the first."""
        while self.n_past < n:
            if not lc.llama_state_seq_set_data(self.context, self.state, len(self.state), 1):
                sys.exit("peer.py: llama.cpp cannot repeat its cache")
            lc.llama_memory_seq_add(self.memory, 1, -1, -1, self.n_past)
            lc.llama_memory_seq_cp(self.memory, 1, 0, -1, -1)
            lc.llama_memory_seq_rm(self.memory, 1, -1, -1)
            self.n_past += self.n_window
        lc.llama_memory_seq_rm(self.memory, 0, n, -1)
        self.n_past = n

    def step(self, token: int) -> int:
        """Reads a token; returns the likeliest next one."""
        self.batch.n_tokens, self.batch.token[0], self.batch.pos[0] = 1, token, self.n_past
        self.batch.n_seq_id[0], self.batch.seq_id[0][0], self.batch.logits[0] = 1, 0, True
        if lc.llama_decode(self.context, self.batch):
            sys.exit("peer.py: llama.cpp cannot decode")
        self.n_past += 1
        return int(np.ctypeslib.as_array(lc.llama_get_logits(self.context), shape=(self.n_vocab,)).argmax())

    def time_steps(self, length: int, steps: int) -> float:
        """Seconds of a step: the mean of those that end with `length` tokens, after one that is not timed."""
        self.fill(length - steps - 1)
        token = self.step(self.last)
        begin = time.perf_counter()
        for _ in range(steps):
            token = self.step(token)
        return (time.perf_counter() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, type=pathlib.Path)
    parser.add_argument("--lengths", default="512,2048,8192,32768")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    be_silent()
    lengths = [int(length) for length in options.lengths.split(",")]
    tokens = Peer(options.model, BATCH, options.threads, True).tokens(options.text.read_bytes())
    decoder = Decoder(options.model, max(lengths) + options.context, options.threads, tokens[: options.context])
    print("length,steps,tokens_per_second,milliseconds,version")
    for length in lengths:
        seconds = decoder.time_steps(length, options.steps)
        print(f"{length},{options.steps},{1 / seconds:.2f},{1e3 * seconds:.3f},{lc.__version__}", flush=True)


if __name__ == "__main__":
    main()
