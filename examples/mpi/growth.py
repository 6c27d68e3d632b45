"""How a context that is spread over machines grows: a model of prefill's time over ranks, and its table.

    python3 examples/mpi/growth.py [--runs FILE] [--latency SECONDS] [--bandwidth BYTES_PER_SECOND] [--heads N] [--kv-heads N]

The model is context_parallel.c's schedule. R ranks hold N / R tokens each. At home a rank attends causally to its own; a
step attends to n = N / (2 R) queries and 2 n keys of each head, or 2 n queries and n keys, while 2 n keys and values of each
kv head travel:

    step = heads (pair 2 n^2 + row 3 n)     transfer = latency + 4 n kv_heads row_bytes / bandwidth
    time = max(home, transfer) + (R - 2) max(step, transfer) + step        home alone for one rank

`pair` and `row`, seconds for a pair of a query and a key and for a query or a key of a call, come from two runs of one rank
without a mask, and home(n), a power of n, from two with one (run.py records them), for each method. A transfer is hidden as
long as it takes less time than what the rank attends to meanwhile.
"""

import argparse
import csv
import dataclasses
import math
import pathlib

HEAD_DIM = 64
BYTES = {"f32": 4, "f16": 2, "bf16": 2}
METHODS = ("exact", "default", "linear", "paper")


@dataclasses.dataclass
class Network:
    latency: float  # seconds
    bandwidth: float  # bytes a second, of one rank


@dataclasses.dataclass
class Layer:
    heads: int
    kv_heads: int
    dtype: str = "f16"


@dataclasses.dataclass
class Cost:
    """Seconds of one core and head. Causal attention to n tokens takes square (n / 8192)^power."""

    pair: float
    row: float
    square: float
    power: float
    exact: "Cost | None" = None  # which takes the place of an approximation that would take longer, as it does of short ones

    def step(self, layer: Layer, n: float) -> float:
        own = layer.heads * (self.pair * 2 * n * n + self.row * 3 * n)
        return min(own, self.exact.step(layer, n)) if self.exact else own

    def home(self, layer: Layer, n: float) -> float:
        own = layer.heads * self.square * (n / 8192) ** self.power
        return min(own, self.exact.home(layer, n)) if self.exact else own


@dataclasses.dataclass
class Growth:
    seconds: float
    attention: float
    step: float
    transfer: float
    behind: float  # what the rank attends to while a transfer is under way, at least

    def hides(self) -> bool:
        return self.transfer <= self.behind


Point = tuple[int, float]  # tokens, and seconds of a head


def fit(rectangles: list[Point], squares: list[Point]) -> Cost:
    """From two calls of as many queries as keys, T(n) = pair n^2 + row 2 n, and two causal ones."""
    (n, t), (m, u) = rectangles[0], rectangles[-1]
    pair = max(0.0, (u / m - t / n) / (m - n))
    row = max(0.0, (t - pair * n * n) / (2 * n))
    (n, t), (m, u) = squares[0], squares[-1]
    power = math.log(u / t) / math.log(m / n)
    return Cost(pair, row, t * (8192 / n) ** power, power)


def grow(cost: Cost, layer: Layer, network: Network, tokens: int, ranks: int) -> Growth:
    n = tokens / (2 * ranks)
    step = cost.step(layer, n)
    transfer = network.latency + 4 * n * layer.kv_heads * HEAD_DIM * BYTES[layer.dtype] / network.bandwidth
    home = cost.home(layer, 2 * n)
    attention = home + (ranks - 1) * step
    if ranks == 1:
        return Growth(home, home, step, 0.0, home)
    seconds = max(home, transfer) + (ranks - 2) * max(step, transfer) + step
    return Growth(seconds, attention, step, transfer, min(home, step) if ranks > 2 else home)


def costs(path: pathlib.Path) -> dict[str, Cost]:
    """Each method's."""
    found: dict[str, Cost] = {}
    for method in METHODS:
        runs = [row for row in read(path) if (row["what"], row["method"]) == ("rate", method)]
        points = {mask: sorted((int(row["tokens"]), float(row["attention"]) / int(row["heads"])) for row in runs if row["mask"] == mask)
                  for mask in ("full", "causal")}  # fmt: skip
        if min(map(len, points.values())) > 1:
            found[method] = fit(points["full"], points["causal"])
            found[method].exact = found.get("exact") if method != "exact" else None
    return found


def read(path: pathlib.Path) -> list[dict[str, str]]:
    lines = (line for line in path.read_text().splitlines() if not line.startswith("#"))
    return list(csv.DictReader(lines))


def most_ranks(cost: Cost, layer: Layer, network: Network, tokens: int) -> int:
    """The largest power of 2 up to which transfers hide behind attention, chunks having a token or more; 1: none does."""
    ranks = 1
    while 4 * ranks <= tokens and grow(cost, layer, network, tokens, 2 * ranks).hides():
        ranks *= 2
    return ranks


def table(found: dict[str, Cost], layer: Layer, networks: list[Network], tokens: list[int], ranks: list[int]) -> list[list[str]]:
    """Rows: a method and length; seconds by ranks over the first network, with what part of them is attention; and for each
    network where transfers take over."""
    rows = []
    for method, cost in found.items():
        for n in tokens:
            cells = []
            for r in ranks:
                g = grow(cost, layer, networks[0], n, r)
                share = g.attention / g.seconds
                cells.append(f"{g.seconds:.3g}" + ("" if share > 0.995 else f" ({share:.0%})"))
            ends = [most_ranks(cost, layer, network, n) for network in networks]
            rows.append([method, f"{n}", *cells, *["never" if 4 * end > n else f"beyond {end}" for end in ends]])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="what run.py recorded")
    parser.add_argument("--latency", type=float, default=20e-6)
    parser.add_argument("--bandwidth", type=float, default=1.25e9)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    args = parser.parse_args()
    ranks = [1, 4, 16, 64, 256, 1024]
    network = Network(args.latency, args.bandwidth)
    rows = table(costs(args.runs), Layer(args.heads, args.kv_heads), [network], [131072, 1048576, 10485760], ranks)
    print(f"one layer, {args.heads} heads, {args.kv_heads} kv heads, f16, causal; a core a rank; "
          f"{args.latency * 1e6:g} us and {args.bandwidth * 8e-9:g} Gbit/s")
    print("seconds (share that is attention, where less than all), and where transfers take longer than attention")
    for row in [["method", "tokens", *[f"{r} ranks" for r in ranks], "transfers"], *rows]:
        print("  ".join(cell.rjust(13) for cell in row))


if __name__ == "__main__":
    main()
