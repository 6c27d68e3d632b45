"""hyperattn.h compared with OpenBLAS, torch, onnxruntime, OpenVINO, AMD's zentorch, ggml and the authors' algorithm, in one
process, one thread, one head of dim 64.

Run by peers.sh, which installs what this needs. Contenders take turns; a time is the least of all rounds. Useful work is
that of exact attention (half of it when causal). The error is that of 64 rows against exact attention in float64.

"decode" is one query a head to a cache of keys and values. Each call meets another copy of it, so that it is read
from memory; GB/s are its bytes over time, and "read" is a plain sum of it. There the error is against exact attention
to the numbers that the cache holds, and onnxruntime, OpenVINO and the header of commit ee45ed7 compete too.
"""

import argparse
import csv
import dataclasses
import datetime
import functools
import os
import pathlib
import re
import sys

import peers_data
import peers_libraries as peers
from peers_contest import Contender, Ratio, contest
from peers_data import Shape

COMPILERS = ("gcc", "clang")
BUILDS = [f"{compiler} -O{level}" for compiler in COMPILERS for level in (1, 2, 3)]
BASE_BUILD = "gcc -O3"
BUILD_CALLS = ("exact, full 4096", "default, causal 16384")
LONG = 131072
FROM = 32768  # exact attention at LONG is extrapolated from this length
RARELY = 2
DTYPES = ("bf16", "f16", "q8_0")
PEERS = "(torch sdpa|zentorch|onnxruntime|OpenVINO)"
BEFORE = "ee45ed7"  # the commit whose header decodes as it prefills
LATENT = Shape("decode", FROM, 576, "f16", heads=128, kv_heads=1, value_dim=512)
DECODED = [
    *(Shape("decode", n, 128, dtype, heads=32, kv_heads=8) for dtype in ("f16", "q8_0", "bf16") for n in (4096, FROM)),
    *(Shape("decode", FROM, 64, dtype, heads=16, kv_heads=16) for dtype in ("f16", "f32")),
    LATENT,
]


def library_of(build: str) -> str:
    return "hyperattn-" + build.replace(" ", "")


MAIN = next((c for c in COMPILERS if (peers.LIBRARIES / f"hyperattn-{c}-O2.so").exists()), COMPILERS[0]) + " -O2"


def ours(name: str, kind: str, shape: Shape, build: str = MAIN, threads: int = 1, **more) -> Contender:
    prepare = functools.partial(peers.peer_attention, library_of(build), kind, shape, threads)
    return Contender(name, shape, prepare, threads, is_exact=kind in ("exact", "avx2"), **more)


def ggml(shape: Shape) -> Contender:
    return Contender(f"ggml {shape.dtype}", shape, functools.partial(peers.peer_attention, "ggml", "flash", shape, 1))


def torch(name: str, kind: str, shape: Shape, **more) -> Contender:
    prepare = functools.partial(peers.torch_attention, kind, shape)
    return Contender(name, shape, prepare, is_exact=kind in ("sdpa", "zentorch"), **more)


def contenders(long: bool, exact_long: bool) -> list[Contender]:
    every = [
        Contender(f"OpenBLAS {core} sgemm", Shape("", 2048), functools.partial(peers.sgemm, core, 2048))
        for core in peers.CORES
    ]
    full, wide, causal = Shape("full", 8192), Shape("full", 8192, 128), Shape("causal", 16384)
    every += [
        ours("exact", "exact", full),
        ours("exact", "exact", wide),
        ours("exact", "exact", causal),
        ours("exact AVX2", "avx2", full),
        *(torch("torch sdpa", "sdpa", shape) for shape in (full, wide, causal)),
        *(torch("zentorch", "zentorch", shape) for shape in (full, wide, causal)),
        *(
            Contender(name, shape, functools.partial(attention, shape))
            for name, attention in (("onnxruntime", peers.onnxruntime_prefill), ("OpenVINO", peers.openvino_attention))
            for shape in (full, wide, causal)
        ),
        ggml(Shape("full", 8192, dtype="f16")),
        ggml(full),
        ggml(Shape("causal", 16384, dtype="f16")),
    ]
    for dim in (64, 128):
        bf16, f16, q8_0 = (Shape("full", 8192, dim, dtype) for dtype in DTYPES)
        every += [ours(f"exact {shape.dtype}", "exact", shape) for shape in (bf16, f16, q8_0)]
        every += [torch("torch sdpa bf16", "sdpa", bf16), torch("zentorch bf16", "zentorch", bf16), ggml(q8_0)]
        every.append(Contender("OpenVINO bf16", bf16, functools.partial(peers.openvino_attention, bf16)))
    for name in ("exact", "linear"):
        every += [ours(name, name, Shape("causal", FROM), threads=threads) for threads in (1, 2)]
    for build in BUILDS:
        every += [
            ours(f"{build} exact", "exact", Shape("full", 4096), build),
            ours(f"{build} default", "linear", causal, build),
        ]
    every += decoders()
    if not long:
        return every
    bf16 = Shape("causal", FROM, dtype="bf16")
    every += [
        torch("torch sdpa", "sdpa", Shape("full", FROM), rounds=RARELY),
        torch("torch sdpa", "sdpa", Shape("causal", FROM), rounds=RARELY),
        torch("torch sdpa bf16", "sdpa", bf16, rounds=RARELY),
        ours("linear bf16", "linear", dataclasses.replace(bf16, n=LONG)),
    ]
    full, causal = Shape("full", LONG), Shape("causal", LONG)
    every += [ours("exact", "exact", shape, rounds=RARELY) for shape in (full, causal) if exact_long]
    every += [ours("exact", "exact", Shape("full", FROM))] if not exact_long else []
    every += [ours(name, name, shape) for shape in (full, causal) for name in ("paper", "linear")]
    return every + [
        torch("authors by matmul", "matmul", full),
        torch("authors by flash", "flash", full),
        torch("authors by matmul", "matmul", causal, rounds=RARELY),
        torch("authors by flash", "flash", causal),
    ]


def decoders() -> list[Contender]:
    return [c for shape in DECODED for c in decoders_of(shape)]


def decoders_of(shape: Shape) -> list[Contender]:
    dtype = shape.dtype
    found = [ours(f"read {dtype}", "read", shape, threads=threads) for threads in (1, 2)]
    found += [ours(f"exact {dtype}", "exact", shape, threads=threads) for threads in (1, 2)]
    found += [ours(f"{BEFORE} {dtype}", "exact", shape, BEFORE, threads) for threads in (1, 2)]
    found.append(ggml(shape))
    if shape.value_dim or dtype == "q8_0":
        return found
    found.append(torch(f"torch sdpa {dtype}", "sdpa", shape))
    if shape.heads > shape.kv_heads:
        found.append(torch(f"torch folded {dtype}", "folded", shape))
    if dtype != "bf16":
        found.append(Contender(f"onnxruntime {dtype}", shape, functools.partial(peers.onnxruntime_decode, shape)))
    return found + [Contender(f"OpenVINO {dtype}", shape, functools.partial(peers.openvino_attention, shape))]


def reckoned(every: list[Contender]) -> list[Contender]:
    """Exact attention at LONG, extrapolated by n^2 if it was not timed."""
    timed = {c.key for c in every}
    longer = [
        dataclasses.replace(
            c,
            shape=dataclasses.replace(c.shape, n=LONG),
            seconds={r: s * (LONG / FROM) ** 2 for r, s in c.seconds.items()},
            error=None,
            note=c.note or f"by n^2 from {FROM}",
        )
        for c in every
        if c.name in ("exact", "torch sdpa", "torch sdpa bf16") and c.shape.n == FROM and c.threads == 1
    ]
    return [c for c in longer if c.key not in timed]


def ratios(long: bool) -> list[Ratio]:
    sgemm = r"OpenBLAS (?!HASWELL).*"
    found = [
        Ratio("exact full / best sgemm", 1.0, [("exact, full 8192", sgemm)]),
        Ratio("exact full d 128 / best sgemm", 0.93, [("exact, full 8192, d 128", sgemm)]),
        Ratio("exact causal / best sgemm", 0.93, [("exact, causal 16384", sgemm)]),
        Ratio("exact AVX2 / HASWELL sgemm", 0.95, [("exact AVX2, full 8192", "OpenBLAS HASWELL.*")]),
        *(
            Ratio(f"exact {size} / best peer", target, [(f"exact, {size}", f"{PEERS}, {size}")])
            for size, target in (("full 8192", 1.1), ("full 8192, d 128", 1.08), ("causal 16384", 1.45))
        ),
        Ratio("exact full / torch", 2.4, [("exact, full 8192", "torch sdpa, full 8192")]),
        Ratio("exact causal / torch", 2.4, [("exact, causal 16384", "torch sdpa, causal 16384")]),
        Ratio("exact full / ggml", 3.0, [("exact, full 8192", "ggml .*, full 8192")]),
        Ratio("exact causal / ggml", 3.0, [("exact, causal 16384", "ggml .*, causal 16384")]),
    ]
    for d in ("", ", d 128"):
        size = f", full 8192{d}"
        found += [
            Ratio(f"exact bf16{size} / best sgemm", 1.6, [(f"exact bf16{size}", sgemm)]),
            Ratio(f"exact bf16{size} / torch bf16", 4, [(f"exact bf16{size}", f"torch sdpa bf16{size}")]),
            Ratio(f"exact bf16{size} / best peer", 1.25 if d else 1.35, [(f"exact bf16{size}", f"{PEERS} bf16{size}")]),
            Ratio(f"exact f16{size} / f32", 0.95, [(f"exact f16{size}", f"exact{size}")]),
            Ratio(f"exact q8_0{size} / f32", 1.05, [(f"exact q8_0{size}", f"exact{size}")]),
            Ratio(f"exact q8_0{size} / ggml q8_0", 15, [(f"exact q8_0{size}", f"ggml q8_0{size}")]),
        ]
    for name in ("exact", "linear"):
        one = f"{name}, causal {FROM}"
        found.append(Ratio(f"{one}: two threads / one", 1.9, [(f"{one}, 2 threads", one)]))
    for build in BUILDS:
        if build != BASE_BUILD:
            pairs = [(f"{build} {call}", f"{BASE_BUILD} {call}") for call in BUILD_CALLS]
            found.append(Ratio(f"{build} / {BASE_BUILD}, the worse of exact and default", 0.97, pairs))
    found += [ratio for shape in DECODED for ratio in decode_ratios(shape)]
    if not long:
        return found
    return found + [
        Ratio(f"{name} {mask} {LONG} / {rival}", target, [(f"{name}, {mask} {LONG}", f"{key}, {mask} {LONG}")])
        for name, mask, rival, key, target in (
            ("paper", "full", "own exact", "exact", 200),
            ("linear", "full", "torch exact", "torch sdpa", 300),
            ("linear", "causal", "own exact", "exact", 18),
            ("linear", "causal", "torch exact", "torch sdpa", 50),
            ("linear bf16", "causal", "torch bf16 exact", "torch sdpa bf16", 80),
            ("linear", "full", "authors by matmul", "authors by matmul", 6),
            ("linear", "full", "authors by flash", "authors by flash", None),
            ("linear", "causal", "authors by matmul", "authors by matmul", 20),
            ("linear", "causal", "authors by flash", "authors by flash", None),
            ("paper", "full", "authors by matmul", "authors by matmul", None),
            ("paper", "causal", "authors by matmul", "authors by matmul", None),
        )
    ]


def decode_ratios(shape: Shape) -> list[Ratio]:
    exact, two = (f"exact {shape.dtype}, {shape.text}{threads}" for threads in ("", ", 2 threads"))
    over_before = {DECODED[0]: 6, DECODED[1]: 5, LATENT: 1.2}
    over_ggml = {("f16", True): 4, ("q8_0", True): 4, ("f16", False): 1.5, ("f32", False): 1}
    rivals = {
        "read": None,
        BEFORE: over_before.get(shape),
        "ggml": over_ggml.get((shape.dtype, shape.heads > shape.kv_heads)) if shape is not LATENT else None,
        "torch sdpa": None,
        "torch folded": None,
        "onnxruntime": None,
        "OpenVINO": None,
    }
    found = [
        Ratio(f"{exact} / {name}", target, [(exact, f"{name} {shape.dtype}, {shape.text}")])
        for name, target in rivals.items()
    ]
    return [
        *found,
        Ratio(f"{two} / one", None, [(two, exact)]),
        Ratio(f"{two} / {BEFORE}", 1.9 if shape is LATENT else None, [(two, f"{BEFORE}{two.removeprefix('exact')}")]),
    ]


def judge(c: Contender, out) -> float:
    return peers_data.error(c.shape, out)


COLUMNS = ("name", "mask", "heads", "n", "dim", "threads", "seconds", "gflops", "gb_per_s", "error", "note")
RATIO_COLUMNS = ("ratio", "of_minima", "median_of_rounds", "target")


def row(c: Contender) -> list[str]:
    ran, mask = c.best is not None, c.shape.mask
    rate = f"{c.rate() * 1e-9:.1f}" if ran and c.is_exact or mask == "decode" and ran else ""
    return [
        c.name,
        mask,
        f"{c.shape.heads}/{c.shape.kv_heads}" if mask else "",
        str(c.shape.n),
        str(c.shape.dim) if mask else "",
        str(c.threads),
        f"{c.best:.3g}" if ran and c.best < 0.001 else f"{c.best:.5f}" if ran else "",
        rate if mask != "decode" else "",
        rate if mask == "decode" else "",
        f"{c.error:.2e}" if c.error is not None else "",
        c.note,
    ]


def ratio_row(ratio: Ratio, every: list[Contender]) -> list[str]:
    measured = ratio.measure(every)
    numbers = [f"{x:.2f}" for x in measured] if measured else ["absent", ""]
    return [ratio.text, *numbers, f"{ratio.target:g}" if ratio.target else ""]


def print_table(columns: tuple[str, ...], rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(columns, *rows)]
    for cells in (columns, *rows):
        padded = [cell.rjust(width) for cell, width in zip(cells, widths)]
        padded[0] = cells[0].ljust(widths[0])
        if columns[-1] == "note":
            padded[-1] = cells[-1]
        print("  ".join(padded).rstrip())
    print()


def circumstances(options: argparse.Namespace) -> list[str]:
    arguments = [pathlib.Path(a).name if pathlib.Path(a).is_absolute() else a for a in sys.argv[1:]]
    return [
        "command: " + " ".join(["sh bench/peers.sh", *arguments]),
        f"CPU: {peers.cpu('model name') or 'unknown'}",
        f"torch {peers.version('torch')}; zentorch {peers.version('zentorch')}; "
        f"OpenBLAS of scipy-openblas32 {peers.version('scipy-openblas32')}; "
        f"{peers.peer_version('ggml')}; onnxruntime {peers.version('onnxruntime')}; "
        f"OpenVINO {peers.version('openvino')}",
        f"hyperattn.h by {MAIN}; builds: " + ", ".join(peers.peer_version(library_of(f"{c} -O2")) for c in COMPILERS),
        f"date: {datetime.date.today()}; rounds: {options.rounds}; load of the last minute: {os.getloadavg()[0]:.1f}",
    ]


def write_csv(path: str, header: list[str], rows: list[list[str]], ratio_rows: list[list[str]]) -> None:
    with open(path, "w", newline="") as file:
        file.writelines(f"# {line}\n" for line in header)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])
        file.write("\n")
        writer.writerows([RATIO_COLUMNS, *ratio_rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="peers.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", metavar="PATTERN", default="", help="contenders whose 'name, mask n' has this regular expression"
    )
    parser.add_argument(
        "--long", action="store_true", help=f"also {LONG} tokens, in 6 GB; exact there by n^2 from {FROM}"
    )
    parser.add_argument("--exact-long", action="store_true", help=f"with --long: time our exact at {LONG}")
    parser.add_argument("--csv", metavar="FILE", help="write both tables there too")
    options = parser.parse_args()
    every = [c for c in contenders(options.long, options.exact_long) if re.search(options.only, c.key)]
    header = circumstances(options)
    contest(every, options.rounds, judge)
    every += reckoned(every) if options.long else []
    rows = [row(c) for c in every]
    ratio_rows = [ratio_row(r, every) for r in ratios(options.long) if r.concerns(every)]
    print("\n".join(header), end="\n\n")
    print_table(COLUMNS, rows)
    print_table(RATIO_COLUMNS, ratio_rows)
    if options.csv:
        write_csv(options.csv, header, rows, ratio_rows)


if __name__ == "__main__":
    main()
