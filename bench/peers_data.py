"""Real activations repeated to any length, as bench_attention.c does it, in every dtype, and the error against float64."""

import functools
import pathlib
from dataclasses import dataclass

import numpy as np

HEAD = pathlib.Path(__file__).parent.parent / "examples" / "data" / "l28h1"
HEAD_DIM = 64
HEAD_ROWS = 8192
JUDGED_ROWS = 64
COLD_BYTES = 320_000_000  # of keys and values in memory, so that no call finds its own in the processor's caches
ALIGNMENT = 1 << 21  # a huge page
NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "q8_0": np.uint8}
BYTES = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32}


@dataclass(frozen=True)
class Shape:
    """What is computed.

    mask is "full" or "causal" for attention of n queries to n keys; "decode" for that of one query a head to a cache
    of n keys, of which there are copies; "" for a product of two matrices. With value_dim, values are the first
    numbers of the keys.
    """

    mask: str
    n: int
    dim: int = HEAD_DIM
    dtype: str = "f32"
    heads: int = 1
    kv_heads: int = 1
    value_dim: int | None = None

    @property
    def text(self) -> str:
        heads = f", {self.heads}/{self.kv_heads} heads" if self.mask == "decode" else ""
        dim = f", d {self.dim}" if self.mask and self.dim != HEAD_DIM else ""
        return f"{self.mask} {self.n}".strip() + heads + dim

    @property
    def n_query(self) -> int:
        return 1 if self.mask == "decode" else self.n

    @property
    def out_dim(self) -> int:
        return self.value_dim or self.dim

    @property
    def bytes(self) -> int:
        """Of keys and values."""
        return int(self.kv_heads * self.n * self.dim * BYTES[self.dtype]) * (1 if self.value_dim else 2)

    @property
    def copies(self) -> int:
        return max(2, COLD_BYTES // self.bytes + 1) if self.mask == "decode" else 1

    @property
    def work(self) -> float:
        """Bytes of the cache; or useful operations, those of exact attention even if it was approximated."""
        pairs = {"full": self.n**2, "causal": self.n**2 / 2, "": 0}
        return self.bytes if self.mask == "decode" else 4 * pairs[self.mask] * self.dim if self.mask else 2 * self.n**3


def rows(which: str, n: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Repetitions carry a little noise; a larger head dim is every row several times, with the same scores."""
    head = np.fromfile(f"{HEAD}.{which}.f16", "<f2").astype(np.float32).reshape(-1, HEAD_DIM)
    x = np.tile(head, (-(-n // len(head)), dim // HEAD_DIM))[:n]
    x[len(head) :] += (rng.random(x[len(head) :].shape, np.float32) - 0.5) * 0.1
    scale = 1 if which == "v" else (HEAD_DIM / dim) ** 0.25
    return np.ascontiguousarray(x * np.float32(scale))


def stored(x: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers in a dtype: bfloat16 as the bits of one, Q8_0 as bytes of ggml's blocks."""
    if dtype == "bf16":
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    if dtype == "q8_0":
        blocks = x.reshape(-1, 32)
        scales = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
        numbers = np.rint(blocks / np.where(scales > 0, scales, 1)).astype(np.int8)
        return np.hstack([scales.astype(np.float16).view(np.uint8), numbers.view(np.uint8)]).reshape(*x.shape[:-1], -1)
    return x.astype(NUMPY[dtype])


def held(x: np.ndarray, dtype: str) -> np.ndarray:
    """What stored numbers are."""
    if dtype == "bf16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    if dtype == "q8_0":
        blocks = x.reshape(-1, 34)
        numbers = blocks[:, :2].copy().view(np.float16).astype(np.float32) * blocks[:, 2:].view(np.int8)
        return numbers.reshape(*x.shape[:-1], -1)
    return x.astype(np.float32)


def copies(x: np.ndarray, n: int) -> np.ndarray:
    """[n][...], one behind the other, from the begin of a page on."""
    memory = np.empty(n * x.nbytes + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    many = memory[begin : begin + n * x.nbytes].view(x.dtype).reshape(n, *x.shape)
    many[:] = x
    return many


@functools.lru_cache(maxsize=1)
def tensors(shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Float32 queries [heads][n_query][dim]; stored keys and values [copies][kv_heads][n][dim].

    There are no values where they are the first numbers of the keys. Queries that decode are numbers that every dtype
    has.
    """
    rng = np.random.default_rng(7)
    is_cache = shape.mask == "decode"
    q = rows("q", HEAD_ROWS if is_cache else shape.n, shape.dim, rng)[-shape.heads * shape.n_query :]
    q = (held(stored(q, "bf16"), "bf16") if is_cache else q).reshape(shape.heads, shape.n_query, shape.dim)
    k, v = (
        copies(stored(rows(which, shape.kv_heads * shape.n, shape.dim, rng), shape.dtype), shape.copies)
        for which in ("k", "v")
    )
    k, v = (x.reshape(shape.copies, shape.kv_heads, shape.n, -1) for x in (k, v))
    return q, k, None if shape.value_dim else v


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, hidden: np.ndarray | None = None) -> np.ndarray:
    scores = q @ k.T / np.sqrt(q.shape[1])
    if hidden is not None:
        scores[hidden] = -np.inf
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights @ v / weights.sum(1, keepdims=True)


@functools.cache
def reference(mask: str, n: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of exact attention to float32 data, in float64, and their positions."""
    q, k, v = (x.reshape(n, dim).astype(np.float64) for x in tensors(Shape(mask, n, dim)))
    at = (np.arange(JUDGED_ROWS) * 2 + 1) * n // (2 * JUDGED_ROWS)
    return at, attention(q[at], k, v, np.arange(n) > at[:, None] if mask == "causal" else None)


@functools.lru_cache(maxsize=1)
def cache_reference(shape: Shape) -> np.ndarray:
    """Exact attention to what a cache holds, in float64, for every head."""
    q, keys, values = tensors(shape)
    out = []
    for i, queries in enumerate(q.reshape(shape.kv_heads, -1, shape.dim)):
        k = held(keys[0, i], shape.dtype).astype(np.float64)
        v = k[:, : shape.value_dim] if values is None else held(values[0, i], shape.dtype).astype(np.float64)
        out.append(attention(queries.astype(np.float64), k, v))
    return np.concatenate(out)


def error(shape: Shape, out: np.ndarray) -> float:
    if shape.mask == "decode":
        exact = cache_reference(shape)
    else:
        at, exact = reference(shape.mask, shape.n, shape.dim)
        out = out.reshape(shape.n, shape.dim)[at]
    return float(np.linalg.norm(out.reshape(exact.shape) - exact) / np.linalg.norm(exact))
