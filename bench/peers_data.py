"""Real activations repeated to any length, as bench_attention.c does it, and the error against float64."""

import functools
import pathlib

import numpy as np

HEAD = pathlib.Path(__file__).parent.parent / "examples" / "data" / "l28h1"
HEAD_DIM = 64
JUDGED_ROWS = 64


@functools.cache
def tensors(n: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, k, v: [n][dim]. Repetitions carry a little noise; head dim 128 is every row twice, with the same scores."""
    rng = np.random.default_rng(7)

    def rows(which: str) -> np.ndarray:
        head = np.fromfile(f"{HEAD}.{which}.f16", "<f2").astype(np.float32).reshape(-1, HEAD_DIM)
        x = np.tile(head, (-(-n // len(head)), dim // HEAD_DIM))[:n]
        x[len(head) :] += (rng.random(x[len(head) :].shape, np.float32) - 0.5) * 0.1
        scale = 1 if which == "v" else (HEAD_DIM / dim) ** 0.25
        return np.ascontiguousarray(x * np.float32(scale))

    return rows("q"), rows("k"), rows("v")


@functools.cache
def reference(n: int, dim: int, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of exact attention in float64, and their positions."""
    q, k, v = (x.astype(np.float64) for x in tensors(n, dim))
    at = (np.arange(JUDGED_ROWS) * 2 + 1) * n // (2 * JUDGED_ROWS)
    scores = q[at] @ k.T / np.sqrt(dim)
    if causal:
        scores[np.arange(n) > at[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return at, weights @ v / weights.sum(1, keepdims=True)


def error(n: int, dim: int, causal: bool, out: np.ndarray) -> float:
    at, exact = reference(n, dim, causal)
    return float(np.linalg.norm(out[at] - exact) / np.linalg.norm(exact))
