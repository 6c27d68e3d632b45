"""Tiny models with random weights, one for each kind of attention that llama.cpp's architectures ask of a backend.

    python3 examples/ggml/random_models.py FOLDER

Needs Python, numpy and gguf (`pip install numpy gguf`). Writes FOLDER/NAME.gguf for each model, FOLDER/tokens.txt, a
text of random token ids that all of them know, and FOLDER/models.json, which says what each model exercises.
same_models.py runs them. The models have no tokenizer. A Mistral with a window is of the architecture llama, for which
llama.cpp reads no window; cohere2 and olmo2, which have windows and nothing else, stand for it.

Weights are float32, so that a difference in attention is not rounded away or up by a product in float16. They are drawn
so that a row's scores vary by about 1.7, which makes attention neither the mean of all values nor one of them, and so
that what it adds to a token outweighs the token. Where experts are chosen, all of them are, since a tiny difference
would otherwise choose another. Each model's seed is the first whose next 64 likeliest tokens are of 12 kinds or more,
lead by 8e-3 of the largest logit or more without flash attention, and are the same with it: llama.cpp's logits err by
2e-3 to 8e-3 of the largest when its flash attention decodes, so that a smaller lead says nothing about a backend.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable

import gguf
import numpy as np

VOCABULARY = 320
N_TOKENS = 600
CONTEXT = 4096
WINDOW = 64
EPSILON = 1e-5


@dataclasses.dataclass
class Model:
    """What a file holds: metadata, whose keys begin with the architecture's name there, and tensors."""

    architecture: str
    seed: int
    metadata: dict[str, int | float] = dataclasses.field(default_factory=dict)
    tensors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        # The stream of RandomState is frozen, that of newer generators may change with numpy.
        self.random = np.random.RandomState(self.seed)

    def draw(self, name: str, *shape: int, scale: float, mean: float = 0) -> None:
        self.tensors[name] = (mean + scale * self.random.standard_normal(shape)).astype(np.float32)

    def matrix(self, name: str, n_in: int, n_out: int, gain: float = 1, n_matrices: int = 0) -> None:
        """Turns vectors whose elements vary by 1 into vectors whose elements vary by `gain`."""
        shape = (n_matrices, n_out, n_in) if n_matrices else (n_out, n_in)
        self.draw(f"{name}.weight", *shape, scale=gain / n_in**0.5)

    def norm(self, name: str, n: int, size: float = 1) -> None:
        self.draw(f"{name}.weight", n, mean=size, scale=0.1 * size)

    def bias(self, name: str, *shape: int) -> None:
        self.draw(f"{name}.bias", *shape, scale=0.1)

    def write(self, path: pathlib.Path) -> None:
        writer = gguf.GGUFWriter(path, self.architecture)
        writer.add_tokenizer_model("none")
        for key, value in self.metadata.items():
            if isinstance(value, int):
                writer.add_uint32(f"{self.architecture}.{key}", value)
            else:
                writer.add_float32(f"{self.architecture}.{key}", value)
        for name, tensor in self.tensors.items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


@dataclasses.dataclass(frozen=True)
class Shape:
    layers: int
    embedding: int
    heads: int
    kv_heads: int
    head: int
    feed_forward: int


def add_shape(model: Model, s: Shape) -> None:
    model.metadata |= {
        "context_length": CONTEXT, "vocab_size": VOCABULARY, "block_count": s.layers, "embedding_length": s.embedding,
        "feed_forward_length": s.feed_forward, "attention.head_count": s.heads, "attention.head_count_kv": s.kv_heads,
        "attention.key_length": s.head, "attention.value_length": s.head, "rope.dimension_count": s.head,
        "attention.layer_norm_rms_epsilon": EPSILON, "attention.layer_norm_epsilon": EPSILON,
    }  # fmt: skip


def add_ends(model: Model, s: Shape, embedding: float = 1) -> None:
    model.draw("token_embd.weight", VOCABULARY, s.embedding, scale=embedding)
    model.norm("output_norm", s.embedding)
    model.matrix("output", s.embedding, VOCABULARY, gain=3)


def add_tied_ends(model: Model, s: Shape) -> None:
    """Ends of an architecture whose last product is with the tokens' embeddings.

    The signs of the last norm's weights are random: without them, a token's own embedding, which is in its sum, would
    make it its own likeliest successor.
    """
    model.draw("token_embd.weight", VOCABULARY, s.embedding, scale=2 / s.embedding**0.5)
    model.tensors["output_norm.weight"] = model.random.choice([-1.5, 1.5], s.embedding).astype(np.float32)


def add_attention(model: Model, s: Shape, layer: int, query: float = 1.3) -> None:
    block = f"blk.{layer}"
    model.norm(f"{block}.attn_norm", s.embedding)
    model.matrix(f"{block}.attn_q", s.embedding, s.heads * s.head, gain=query)
    model.matrix(f"{block}.attn_k", s.embedding, s.kv_heads * s.head, gain=1.3)
    model.matrix(f"{block}.attn_v", s.embedding, s.kv_heads * s.head, gain=2)
    model.matrix(f"{block}.attn_output", s.heads * s.head, s.embedding, gain=3)


def add_feed_forward(model: Model, s: Shape, layer: int, gain: float = 1, has_norm: bool = True) -> None:
    block = f"blk.{layer}"
    if has_norm:
        model.norm(f"{block}.ffn_norm", s.embedding)
    model.matrix(f"{block}.ffn_gate", s.embedding, s.feed_forward, gain=1.5)
    model.matrix(f"{block}.ffn_up", s.embedding, s.feed_forward)
    model.matrix(f"{block}.ffn_down", s.feed_forward, s.embedding, gain=gain)


def llama(seed: int) -> Model:
    """plain: 4 query heads for 2 of the keys, no window"""
    model, s = Model("llama", seed), Shape(4, 128, 4, 2, 64, 256)
    add_shape(model, s)
    add_ends(model, s)
    for i in range(s.layers):
        add_attention(model, s, i)
        add_feed_forward(model, s, i, gain=2)
    return model


def gemma2(seed: int) -> Model:
    """soft cap; a window in every other layer; heads of 256"""
    model, s = Model("gemma2", seed), Shape(4, 64, 4, 2, 256, 256)
    add_shape(model, s)
    model.metadata |= {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 30.0}
    model.metadata |= {"attention.sliding_window": WINDOW}
    add_tied_ends(model, s)
    for i in range(s.layers):
        add_attention(model, s, i, query=2)
        model.norm(f"blk.{i}.post_attention_norm", s.embedding)
        add_feed_forward(model, s, i)
        model.norm(f"blk.{i}.post_ffw_norm", s.embedding)
    return model


def gemma3(seed: int) -> Model:
    """5 layers with a window to 1 without; 4 heads of 256 for 1 of the keys"""
    model, s = Model("gemma3", seed), Shape(6, 64, 4, 1, 256, 128)
    add_shape(model, s)
    model.metadata |= {"attention.sliding_window": WINDOW, "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4}
    add_tied_ends(model, s)
    for i in range(s.layers):
        add_attention(model, s, i)
        model.norm(f"blk.{i}.attn_q_norm", s.head, 1.3)
        model.norm(f"blk.{i}.attn_k_norm", s.head, 1.3)
        model.norm(f"blk.{i}.post_attention_norm", s.embedding)
        add_feed_forward(model, s, i)
        model.norm(f"blk.{i}.post_ffw_norm", s.embedding)
    return model


def gpt_oss(seed: int) -> Model:
    """sinks; a window in every other layer; 8 heads for 1 of the keys; experts"""
    model, s, n_experts = Model("gpt-oss", seed), Shape(4, 64, 8, 1, 64, 64), 4
    add_shape(model, s)
    model.metadata |= {
        "attention.sliding_window": WINDOW, "expert_count": n_experts, "expert_used_count": n_experts,
        "expert_feed_forward_length": s.feed_forward,
    }  # fmt: skip
    add_ends(model, s)
    for i in range(s.layers):
        add_attention(model, s, i)
        for name, n in (("q", s.heads * s.head), ("k", s.kv_heads * s.head), ("v", s.kv_heads * s.head)):
            model.bias(f"blk.{i}.attn_{name}", n)
        model.bias(f"blk.{i}.attn_output", s.embedding)
        # In a layer with a window, a sink takes about a third of a row, of some heads more and of some less.
        model.draw(f"blk.{i}.attn_sinks.weight", s.heads, mean=4.5, scale=1)
        add_experts(model, s, i, n_experts)
    return model


def add_experts(model: Model, s: Shape, layer: int, n_experts: int) -> None:
    block = f"blk.{layer}"
    model.norm(f"{block}.post_attention_norm", s.embedding)
    model.matrix(f"{block}.ffn_gate_inp", s.embedding, n_experts)
    model.bias(f"{block}.ffn_gate_inp", n_experts)
    for name, n_in, n_out in (
        ("gate", s.embedding, s.feed_forward),
        ("up", s.embedding, s.feed_forward),
        ("down", s.feed_forward, s.embedding),
    ):  # fmt: skip
        model.matrix(f"{block}.ffn_{name}_exps", n_in, n_out, n_matrices=n_experts)
        model.bias(f"{block}.ffn_{name}_exps", n_experts, n_out)


def cohere2(seed: int) -> Model:
    """3 layers with a window to 1 without, which has no positions"""
    model, s = Model("cohere2", seed), Shape(4, 256, 4, 2, 64, 128)
    add_shape(model, s)
    model.metadata |= {"attention.sliding_window": WINDOW, "logit_scale": 1.0}
    add_tied_ends(model, s)
    for i in range(s.layers):
        add_attention(model, s, i)
        add_feed_forward(model, s, i, has_norm=False)
    return model


def olmo2(seed: int) -> Model:
    """3 layers with a window to 1 without; a head of keys for each of the queries"""
    model, s = Model("olmo2", seed), Shape(4, 128, 2, 2, 64, 256)
    add_shape(model, s)
    model.metadata |= {"attention.sliding_window": WINDOW}
    add_ends(model, s, embedding=0.5)
    for i in range(s.layers):
        add_attention(model, s, i)
        del model.tensors[f"blk.{i}.attn_norm.weight"]
        model.norm(f"blk.{i}.attn_q_norm", s.heads * s.head, 1.3)
        model.norm(f"blk.{i}.attn_k_norm", s.kv_heads * s.head, 1.3)
        model.norm(f"blk.{i}.post_attention_norm", s.embedding)
        add_feed_forward(model, s, i, has_norm=False)
        model.norm(f"blk.{i}.post_ffw_norm", s.embedding)
    return model


def mpt(seed: int) -> Model:
    """ALiBi, of a number of heads that is no power of two"""
    model, s = Model("mpt", seed), Shape(4, 192, 3, 3, 64, 256)
    add_shape(model, s)
    model.metadata |= {"attention.max_alibi_bias": 8.0, "attention.clamp_kqv": 6.0}
    add_ends(model, s)
    for i in range(s.layers):
        add_attention(model, s, i)
        parts = [model.tensors.pop(f"blk.{i}.attn_{name}.weight") for name in "qkv"]
        model.tensors[f"blk.{i}.attn_qkv.weight"] = np.concatenate(parts)
        add_feed_forward(model, s, i)
        del model.tensors[f"blk.{i}.ffn_gate.weight"]
    return model


def deepseek2(seed: int) -> Model:
    """MLA, absorbed: keys of 576, whose first 512 are the values, one head of them for all queries"""
    model, s = Model("deepseek2", seed), Shape(2, 128, 4, 1, 576, 128)
    rank, rotary, key, value, query_rank = 512, 64, 192, 128, 64
    add_shape(model, s)
    model.metadata |= {
        "leading_dense_block_count": s.layers, "attention.q_lora_rank": query_rank, "attention.kv_lora_rank": rank,
        "attention.value_length": rank, "attention.key_length_mla": key, "attention.value_length_mla": value,
        "rope.dimension_count": rotary, "expert_feed_forward_length": s.feed_forward, "expert_shared_count": 1,
    }  # fmt: skip
    add_ends(model, s)
    for i in range(s.layers):
        block = f"blk.{i}"
        model.norm(f"{block}.attn_norm", s.embedding)
        model.matrix(f"{block}.attn_q_a", s.embedding, query_rank)
        model.norm(f"{block}.attn_q_a_norm", query_rank)
        model.matrix(f"{block}.attn_q_b", query_rank, s.heads * key, gain=1.3)
        model.matrix(f"{block}.attn_kv_a_mqa", s.embedding, rank + rotary, gain=1.3)
        model.norm(f"{block}.attn_kv_a_norm", rank)
        # It stands transposed there, since queries are multiplied by it in place of keys.
        model.draw(f"{block}.attn_k_b.weight", s.heads, rank, key - rotary, scale=1.3 / rank**0.5)
        model.matrix(f"{block}.attn_v_b", rank, value, gain=2, n_matrices=s.heads)
        model.matrix(f"{block}.attn_output", s.heads * value, s.embedding, gain=3)
        add_feed_forward(model, s, i)
    return model


SEEDS: dict[Callable[[int], Model], int] = {
    llama: 35, gemma2: 3, gemma3: 277, gpt_oss: 21, cohere2: 8, olmo2: 144, mpt: 106, deepseek2: 59,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    exercises = {}
    for maker, seed in SEEDS.items():
        model = maker(seed)
        path = folder / f"{model.architecture}.gguf"
        model.write(path)
        exercises[path.name] = maker.__doc__
        print(f"{path.stat().st_size / 1e6:5.1f} MB  {path}: {maker.__doc__}")
    tokens = np.random.RandomState(0).randint(0, VOCABULARY, N_TOKENS)
    (folder / "tokens.txt").write_text(" ".join(map(str, tokens)) + "\n")
    (folder / "models.json").write_text(json.dumps(exercises, indent=2) + "\n")


if __name__ == "__main__":
    main()
