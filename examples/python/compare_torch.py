"""hyperattn.py beside torch: scaled_dot_product_attention with masks, and flex_attention with score_mod.

    python3 -m venv build/torch && build/torch/bin/pip install numpy torch     # some gigabytes
    build/torch/bin/python examples/python/compare_torch.py [--problems 200] [--seed 0]

Random problems in float32. An error is |out - expected| / |expected|, in Frobenius norms, where `expected` is
what the same function of torch gives in float64; torch's own error in float32 stands beside it. The exit code
is 1 if an error of the library is above 1e-5, and 77 where torch is missing.
"""

import argparse
import sys
import warnings

import numpy as np

try:
    import torch
    from torch.nn.attention.flex_attention import flex_attention
    from torch.nn.functional import scaled_dot_product_attention
except ImportError as error:
    print(f"SKIP: {error}")
    sys.exit(77)

import hyperattn

BOUND = 1e-5

# ---- The kinds of problems: what the library is asked for, and the same as a function of torch ----


class Shape:
    def __init__(self, rng: np.random.Generator, is_square: bool):
        self.batch, self.n_kv_heads, group = (int(n) for n in rng.integers(1, [3, 4, 4]))
        self.n_heads = self.n_kv_heads * group
        self.n_query = int(rng.integers(1, 200))
        self.n_key = self.n_query if is_square else self.n_query + int(rng.integers(0, 200))
        self.head_dim, self.value_dim = (int(n) for n in rng.choice([16, 32, 40, 64, 80, 128], 2))

    def tensors(self, rng: np.random.Generator) -> list[np.ndarray]:
        queries = self.batch, self.n_heads, self.n_query
        keys = self.batch, self.n_kv_heads, self.n_key
        shapes = (*queries, self.head_dim), (*keys, self.head_dim), (*keys, self.value_dim)
        return [rng.standard_normal(shape, np.float32) for shape in shapes]

    def scores(self, rng: np.random.Generator) -> tuple[int, ...]:
        """The shape of a mask: some of its dimensions are broadcast."""
        whole = self.batch, self.n_heads, self.n_query, self.n_key
        return *(n if rng.random() < 0.5 else 1 for n in whole[:3]), whole[3]

    def ahead(self, query, key):
        """How far a key stands ahead of a query. The last query and the last key stand together."""
        return key - (query + self.n_key - self.n_query)


def sdpa(**options):
    def run(q, k, v):
        mask = options.get("attn_mask")
        if mask is not None and mask.dtype != torch.bool:
            return scaled_dot_product_attention(q, k, v, enable_gqa=True, attn_mask=mask.to(q.dtype))
        return scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)

    return run


def flex(score_mod):
    return lambda q, k, v: flex_attention(q, k, v, score_mod=score_mod, enable_gqa=True)


def no_mask(rng, shape):
    return {}, sdpa()


def causal(rng, shape):
    return {"causal": True}, sdpa(is_causal=True)


def causal_chunk(rng, shape):
    may_attend = torch.ones(shape.n_query, shape.n_key).tril(shape.n_key - shape.n_query).bool()
    return {"causal": True}, sdpa(attn_mask=may_attend)


def bool_mask(rng, shape):
    mask = rng.random(shape.scores(rng)) < rng.uniform(0.1, 1)
    return {"mask": mask}, sdpa(attn_mask=torch.from_numpy(mask))


def float_mask(rng, shape):
    mask = 3 * rng.standard_normal(shape.scores(rng), np.float32)
    mask[rng.random(mask.shape) < 0.3] = -np.inf
    return {"mask": mask}, sdpa(attn_mask=torch.from_numpy(mask))


def softcap(rng, shape):
    cap = float(rng.uniform(0.5, 20))
    return {"softcap": cap}, flex(lambda score, b, h, i, j: cap * torch.tanh(score / cap))


def alibi(rng, shape):
    slopes = 2.0 ** -rng.uniform(0, 8, shape.n_heads).astype(np.float32)
    distance = shape.ahead(np.arange(shape.n_query)[:, None], np.arange(shape.n_key, dtype=np.float32))
    by_head = torch.from_numpy(slopes)

    def score_mod(score, b, h, i, j):
        return score + by_head[h] * shape.ahead(i, j)

    return {"mask": distance, "mask_slope": slopes}, flex(score_mod)


def is_seen(ahead, window, is_causal):
    return (-ahead < window) & (ahead <= 0 if is_causal else ahead < window)


def sliding_window(rng, shape):
    window, is_causal = int(rng.integers(1, 150)), bool(rng.random() < 0.5)

    def score_mod(score, b, h, i, j):
        return torch.where(is_seen(shape.ahead(i, j), window, is_causal), score, -torch.inf)

    return {"sliding_window": window, "causal": is_causal}, flex(score_mod)


def all_of_these(rng, shape):
    options = {}
    for part in softcap, alibi, sliding_window:
        options |= part(rng, shape)[0]
    cap, slopes = options["softcap"], torch.from_numpy(options["mask_slope"])

    def score_mod(score, b, h, i, j):
        ahead = shape.ahead(i, j)
        capped = cap * torch.tanh(score / cap) + slopes[h] * ahead
        return torch.where(is_seen(ahead, options["sliding_window"], options["causal"]), capped, -torch.inf)

    return options, flex(score_mod)


KINDS = {
    "sdpa": no_mask,
    "sdpa, is_causal": causal,
    "sdpa, causal, more keys than queries": causal_chunk,
    "sdpa, bool mask": bool_mask,
    "sdpa, float mask": float_mask,
    "flex, softcap": softcap,
    "flex, ALiBi": alibi,
    "flex, sliding window": sliding_window,
    "flex, all three": all_of_these,
}

# ---- Comparing ----


def relative_error(got, expected: np.ndarray) -> float:
    norm = np.linalg.norm(expected)
    return float(np.linalg.norm(np.asarray(got, np.float64) - expected) / (norm or 1.0))


def compare(rng: np.random.Generator, kind) -> tuple[float, float]:
    """Errors of the library and of torch, both in float32, on one problem."""
    shape = Shape(rng, is_square=kind is causal)
    options, run = kind(rng, shape)
    arrays = shape.tensors(rng)
    ours = hyperattn.attention(*arrays, method="exact", **options)
    tensors = [torch.from_numpy(x) for x in arrays]
    expected = run(*(x.double() for x in tensors)).numpy()
    return relative_error(ours, expected), relative_error(run(*tensors), expected)


def main() -> int:
    parser = argparse.ArgumentParser(description="hyperattn.py beside torch")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch")  # that flex_attention is not compiled
    torch.compiler.set_stance("force_eager")
    rng = np.random.default_rng(options.seed)
    errors = {name: [] for name in KINDS}
    for i in range(options.problems):
        name = list(KINDS)[i % len(KINDS)]
        errors[name].append(compare(rng, KINDS[name]))
        if sys.stderr.isatty():
            print(f"\r\033[K{i + 1} of {options.problems}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    print(f"torch {torch.__version__}, {options.problems} problems; worst errors against torch in float64")
    print(f"{'':38}{'problems':>10}{'hyperattn.h':>14}{'torch':>10}")
    for name, pairs in errors.items():
        print(f"{name:38}{len(pairs):10}" + "{:14.1e}{:10.1e}".format(*np.max(pairs or [(0, 0)], 0)))
    worst = np.max([ours for pairs in errors.values() for ours, _ in pairs])  # NaN where one is
    print(f"worst error {worst:.1e}, bound {BOUND:.0e}: {'kept' if worst <= BOUND else 'MISSED'}")
    return int(not worst <= BOUND)


if __name__ == "__main__":
    sys.exit(main())
