"""Writes the tables of docs/machines.md and its figure from its record, docs/machines.csv (examples/mpi/run.py makes it):
python3 bench/machines_page.py

The model is examples/mpi/growth.py's. The figure needs matplotlib; without it only the tables are written.
"""

import pathlib
import sys

from page import DOCS, Row, fill, machine, markdown, tables

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples" / "mpi"))
import growth  # noqa: E402

RECORD = DOCS / "machines.csv"
LAYER = growth.Layer(heads=32, kv_heads=8)
NETWORKS = {"10 Gbit/s": growth.Network(20e-6, 1.25e9), "100 Gbit/s": growth.Network(5e-6, 12.5e9)}
RANKS = [1, 4, 16, 64, 256, 1024]
ROUNDING = 1e-5  # smaller errors are those of float32
TOKENS = [131072, 1048576, 10485760]


def rows(what: str) -> list[Row]:
    return [row for row in tables(RECORD)[0] if row["what"] == what]


def checks() -> str:
    found = []
    for ranks in ("1", "2", "3", "4"):
        here = [row for row in rows("check") if row["ranks"] == ranks]
        exact = [float(row["from_one"]) for row in here if row["method"] == "exact"]
        worse = [float(row["error"]) / float(row["error_of_one"]) for row in here if float(row["error_of_one"]) > ROUNDING]
        balance = [float(row["balance"]) for row in here if row["balance"] and int(row["tokens"]) >= 1000]
        found.append([ranks, str(len(here)), f"{max(exact):.1e}", f"{max(worse):.2f}", f"{max(balance):.4f}"])
    return markdown(["ranks", "cases", "exact, from one process", "approximate, error over one process's", "most pairs over mean"], found)


def ring() -> str:
    found = []
    for row in rows("ring"):
        attention, waiting = float(row["attention"]), float(row["waiting"])
        cells = [row["method"], f"{attention:.4f}", f"{waiting:.4f} ({waiting / attention:.1%})", row["merging"][:6], f"{float(row['bytes']) * 1e-6:.1f}"]
        found.append(cells)
    return markdown(["method", "attention, s", "waiting, s", "merging, s", "sent by a rank, MB"], found)


def decode() -> str:
    found = []
    for row in rows("decode"):
        cells = [row["ranks"], row["method"], f"{float(row['attention']) * 1e6:.0f}", f"{float(row['waiting']) * 1e6:.0f}", row["bytes"]]
        found.append(cells)
    return markdown(["ranks", "method", "attention, us a step", "messages and waiting, us", "bytes a step, of a rank"], found)


def held() -> str:
    """The model against runs over a loopback of known speed, which both directions of two ranks share."""
    costs = growth.costs(RECORD)
    found = []
    for speed, bandwidth in (("ring", 4e9), ("10gbit", 1.25e9), ("1gbit", 0.125e9), ("200mbit", 0.025e9)):
        for row in rows(speed):
            if row["method"] not in costs:
                continue
            layer = growth.Layer(int(row["heads"]), int(row["kv_heads"]), row["dtype"])
            model = growth.grow(costs[row["method"]], layer, growth.Network(50e-6, bandwidth / 2), int(row["tokens"]), int(row["ranks"]))
            name = "shared memory" if speed == "ring" else speed
            found.append([name, row["method"], f"{float(row['seconds']):.3f}", f"{model.seconds:.3f}", f"{float(row['waiting']):.3f}", f"{model.seconds - model.attention:.3f}"])
    return markdown(["network", "method", "measured, s", "model, s", "waiting, measured", "model"], found)


def grown() -> str:
    table = growth.table(growth.costs(RECORD), LAYER, list(NETWORKS.values()), TOKENS, RANKS)
    return markdown(["method", "tokens", "1 rank", *[f"{r} ranks" for r in RANKS[1:]], *[f"transfers take over at {name}" for name in NETWORKS]], table)


def draw() -> None:
    try:
        import matplotlib
    except ImportError:
        print("no matplotlib: docs/machines.svg stays as it is")
        return
    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "machines"
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), sharey=True)
    ranks = [1 << i for i in range(11)]
    for axis, tokens in zip(axes, TOKENS):
        for method, cost in growth.costs(RECORD).items():
            seconds = [growth.grow(cost, LAYER, NETWORKS["10 Gbit/s"], tokens, r) for r in ranks]
            line = axis.loglog(ranks, [g.seconds for g in seconds], label=method)[0]
            slow = [(r, g.seconds) for r, g in zip(ranks, seconds) if r > 1 and not g.hides()]
            axis.plot([r for r, _ in slow], [s for _, s in slow], "o", color=line.get_color(), fillstyle="none")
        axis.set_title(f"{tokens / 1048576:g} Mi tokens" if tokens >= 1048576 else f"{tokens} tokens")
        axis.set_xlabel("ranks of one core")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds for a layer")
    axes[0].legend()
    figure.suptitle("Causal prefill over 10 Gbit/s, by the model; circles: transfers take longer than attention")
    figure.tight_layout()
    figure.savefig(DOCS / "machines.svg", metadata={"Date": None})


if __name__ == "__main__":
    made = {"checks": checks, "ring": ring, "decode": decode, "held": held, "grown": grown}
    fill(DOCS / "machines.md", {"machine": lambda: machine(RECORD), **made}, lambda _: RECORD)
    draw()
