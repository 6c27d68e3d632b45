"""The algorithm of the paper's authors on torch, for any heads: sortLSH blocks, shared uniform samples, causal halving.

Written from the paper's description, not from the authors' code. Two things are as the paper means them and not as that
code has them: buckets stand in Gray order, and a sampled key is hidden from the queries whose block holds it.
"""

import math
from collections.abc import Callable

import torch

Attended = tuple[torch.Tensor, torch.Tensor]  # rows and their log-sum-exp
Attend = Callable[..., Attended]  # of q, k, v, causal, bias

PLANES = 7
BLOCK = 256
SAMPLES = 256
MIN_SEQ_LEN = 4096


def by_matmul(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False, bias: torch.Tensor | None = None
) -> Attended:
    """Exact attention with the whole table of scores in memory, as the authors' code has it in float32."""
    scores = (q @ k.mT).mul_(q.shape[-1] ** -0.5)
    if causal:
        scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    if bias is not None:
        scores += bias
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def by_flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False, bias: torch.Tensor | None = None
) -> Attended:
    """Exact attention by the operator below torch's scaled_dot_product_attention, which returns the log-sum-exp too."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=bias)


ATTEND: dict[str, Attend] = {"matmul": by_matmul, "flash": by_flash}


def merge(a: Attended, b: Attended) -> Attended:
    lse = torch.logaddexp(a[1], b[1])
    return a[0] * (a[1] - lse).exp()[..., None] + b[0] * (b[1] - lse).exp()[..., None], lse


def rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x.gather(2, index[..., None].expand(*index.shape, x.shape[-1]))


def order(x: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """Sorts rows by angular hash, with the buckets in Gray order: neighbours differ in one hyperplane."""
    bucket = ((x @ planes > 0) << torch.arange(PLANES)).sum(-1)
    for shift in (1, 2, 4):
        bucket = bucket ^ bucket >> shift
    return bucket.argsort(dim=-1, stable=True)


def blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attend: Attend) -> Attended:
    """The i-th block of sorted queries meets the i-th block of sorted keys."""
    out, lse = attend(*(x.reshape(-1, 1, BLOCK, x.shape[-1]) for x in (q, k, v)))
    return out.reshape(q.shape), lse.reshape(q.shape[:-1])


def samples(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attend: Attend) -> Attended:
    """Uniform keys, shared by a head's queries, each standing for n / m keys; hidden from the queries of its own block."""
    n = k.shape[2]
    drawn = torch.randint(n, (*k.shape[:2], SAMPLES))
    own = torch.arange(n)[:, None] // BLOCK == (drawn // BLOCK)[..., None, :]
    bias = torch.zeros(own.shape).masked_fill_(own, -math.inf)
    out, lse = attend(q, rows(k, drawn), rows(v, drawn), bias=bias)
    return out, lse + math.log(n / SAMPLES)


def full(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attend: Attend) -> Attended:
    if q.shape[2] < MIN_SEQ_LEN:
        return attend(q, k, v)
    planes = torch.randn(q.shape[-1], PLANES)
    q_order, k_order = order(q, planes), order(k, planes)
    q, k, v = rows(q, q_order), rows(k, k_order), rows(v, k_order)
    out, lse = merge(blocks(q, k, v, attend), samples(q, k, v, attend))
    back = q_order.argsort(dim=-1)
    return rows(out, back), lse.gather(2, back)


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attend: Attend) -> Attended:
    """Exact segments of at most MIN_SEQ_LEN; then segments double, and the second half of each meets its first half."""
    heads, n, dim = q.shape[1:]
    parts = 1
    while n // parts > MIN_SEQ_LEN:
        parts *= 2
    segments = [x.reshape(1, heads * parts, n // parts, dim) for x in (q, k, v)]
    out, lse = attend(*segments, causal=True)
    while parts > 1:
        parts //= 2
        (_, late_q), (early_k, _), (early_v, _), (early_out, late_out), (early_lse, late_lse) = (
            x.reshape(1, heads * parts, 2, n // parts // 2, -1).unbind(2) for x in (q, k, v, out, lse)
        )
        late_out, late_lse = merge((late_out, late_lse[..., 0]), full(late_q, early_k, early_v, attend))
        out = torch.stack((early_out, late_out), 2)
        lse = torch.stack((early_lse[..., 0], late_lse), 2)
    return out.reshape(q.shape), lse.reshape(q.shape[:-1])


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool, attend: Attend) -> torch.Tensor:
    """q, k, v: [1][heads][n][dim]; n is a multiple of the block size, and at every causal split of twice that."""
    return (causal if is_causal else full)(q, k, v, attend)[0]
