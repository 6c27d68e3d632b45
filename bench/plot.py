"""Figures from the benches:
build/peers/venv/bin/python bench/plot.py [BENCH_CSV] [--peers PEERS_CSV] [--quality QUALITY_CSV] [--scan SCAN_CSV]
    [--scaling SCALING_CSV] [--into docs]

BENCH_CSV is what bench_attention --csv printed, PEERS_CSV what peers.sh --csv wrote. One thread, head dim 64.
They become time.svg, speedup.svg and error.svg. A hollow point rests on exact attention that was not timed but
extrapolated by n^2. QUALITY_CSV is what bench_quality --front --csv wrote; it becomes quality.svg, error over cost.
SCAN_CSV is what bench_scan --csv wrote; it becomes scan.svg, quantiles of errors over time.
SCALING_CSV is what bench_scaling --csv wrote; it becomes scaling.svg, efficiency over workers, one head.
The same input gives the same bytes. The figures suit light and dark pages.
"""

import argparse
import csv
import itertools
import pathlib
import statistics
from collections import defaultdict

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib import ticker  # noqa: E402
from scaling_page import cases  # noqa: E402
from scan_page import KINDS, grouped, kind, of_first_isa, read  # noqa: E402

MASKS = ("full", "causal")
INK = "#808890"
COLOURS = {"exact": "#7a869a", "paper": "#e8833a", "linear": "#2f86eb", "default": "#2f86eb"}
PEERS = {
    "torch sdpa": ("torch", "D", "#d9534f"),
    "ggml f16": ("ggml", "s", "#2ca58d"),
    "authors by matmul": ("authors' algorithm on torch", "^", "#a66bd4"),
    "authors by flash": ("the same by torch's flash attention", "v", "#a66bd4"),
}
APPROXIMATE = ("paper", "linear")
AUTHORS = ("authors by matmul", "authors by flash")
QUALITY_SETS = {  # set: its error, its title
    "essay": ("error", "essay"),
    "repeat": ("second_half_error", "repeated text, second half"),
    "planted 0.1": ("error", "planted entries, noise 0.1"),
    "clustered": ("error", "clustered keys"),
}
QUALITY_COSTS = {"share_of_exact": "key-query pairs over exact", "time_over_exact": "time over exact"}
QUALITY_FRONTS = {
    "paper": ("paper, its budget x 1/4 to 4", COLOURS["paper"]),
    "linear": ("linear, its budget x 1/4 to 4", COLOURS["linear"]),
    "tolerance": ("default, tolerance as marked", "#2ca58d"),
}
SCAN_KINDS = {"ordinary": "ordinary heads", "retrieves": "heads that retrieve", "gauss": "Gaussian rows"}
SCAN_QUANTILES = {"q50": ("-", "o", "50 %"), "q99": ("--", "^", "99 %"), "q999": (":", "s", "99.9 % of queries")}
SCAN_FRONTS = {
    "scan": ("scan, by tolerance as marked", "#2ca58d"),
    "budget": ("scan at tolerance 0, by budget as marked", "#a66bd4"),
    "linear": ("linear, by budget", COLOURS["linear"]),
    "paper": ("paper, by budget", COLOURS["paper"]),
}
SCALING_COLOURS = {"exact": COLOURS["exact"], "default": "#2ca58d", "linear": COLOURS["linear"]}
SCALING_LINES = (":", "--", "-")  # by length
LEAST_DRAWN = 1e-3  # of an error
STYLE = {
    "svg.hashsalt": "hyperattn",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "savefig.transparent": True,
}

Row = dict[str, str]
Curves = dict[tuple[str, str], list[Row]]  # by method and mask, n ascending


def read_table(path: str) -> list[Row]:
    """The first table of a file, up to an empty line, without comment lines."""
    lines = (line for line in pathlib.Path(path).read_text().splitlines() if not line.startswith("#"))
    rows = csv.DictReader(itertools.takewhile(str.strip, lines))
    return [row for row in rows if row["dim"] == "64" and row["threads"] == "1" and row["seconds"]]


def curves(rows: list[Row], name: str) -> Curves:
    found: Curves = defaultdict(list)
    for row in sorted(rows, key=lambda row: int(row["n"])):
        found[row[name], row["mask"]].append(row)
    return found


def numbers(rows: list[Row], column: str) -> list[float]:
    return [float(row[column]) for row in rows]


def panels(xlabel: str, ylabel: str):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharex=True, sharey=True, layout="constrained")
    for axis, mask in zip(axes, MASKS):
        axis.set(xscale="log", yscale="log", title=mask, xlabel=xlabel)
    axes[0].set_ylabel(ylabel)
    return figure, axes


def tokens(n: str) -> str:
    return f"{int(n) // 1024}k"


def mark_tokens(axis, counts: list[str]) -> None:
    axis.set_xticks([int(n) for n in counts], [tokens(n) for n in counts])
    axis.minorticks_off()


def save(figure, axes, path: pathlib.Path) -> None:
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def with_reckoned(exact: list[Row], counts: list[str]) -> list[Row]:
    """Exact attention at every count of tokens; where it was not timed, extrapolated by n^2 from the longest that was."""
    timed = {row["n"]: row for row in exact}
    longest = exact[-1]
    return [timed.get(n) or reckon(longest, n) for n in counts]


def reckon(row: Row, n: str) -> Row:
    return row | {"n": n, "seconds": str(float(row["seconds"]) * (int(n) / int(row["n"])) ** 2), "note": "by n^2"}


def draw(axis, rows: list[Row], heights: list[float], style: str, colour: str, label: str) -> None:
    x, is_reckoned = numbers(rows, "n"), [bool(row.get("note")) for row in rows]
    timed = [i for i, reckoned in enumerate(is_reckoned) if not reckoned]
    axis.plot(x, heights, style, color=colour, markevery=timed, label=label)
    reckoned = list(itertools.compress(zip(x, heights), is_reckoned))
    if reckoned:
        axis.plot(*zip(*reckoned), style[0], color=colour, markerfacecolor="none")


def plot_time(bench: Curves, peers: Curves, path: pathlib.Path) -> None:
    figure, axes = panels("tokens", "seconds")
    counts = sorted({row["n"] for rows in bench.values() for row in rows}, key=int)
    for axis, mask in zip(axes, MASKS):
        ours = {"exact": with_reckoned(bench["exact", mask], counts)}
        ours |= {method: bench[method, mask] for method in APPROXIMATE}
        for method, rows in ours.items():
            draw(axis, rows, numbers(rows, "seconds"), "o-", COLOURS[method], method)
        for name, (label, marker, colour) in PEERS.items():
            if rows := peers[name, mask]:
                draw(axis, rows, numbers(rows, "seconds"), marker, colour, label)
        mark_tokens(axis, counts)
    save(figure, axes, path)


def plot_speedup(bench: Curves, path: pathlib.Path) -> None:
    figure, axes = panels("tokens", "times as fast as exact")
    for axis, mask in zip(axes, MASKS):
        for method in APPROXIMATE:
            rows = bench[method, mask]
            exact = with_reckoned(bench["exact", mask], [row["n"] for row in rows])
            speedups = [e / s for e, s in zip(numbers(exact, "seconds"), numbers(rows, "seconds"))]
            draw(axis, exact, speedups, "o-", COLOURS[method], method)
        axis.axhline(1, color=INK, linewidth=1)
        mark_tokens(axis, [row["n"] for row in rows])
    save(figure, axes, path)


def plot_error(bench: Curves, peers: Curves, path: pathlib.Path) -> None:
    figure, axes = panels("seconds", "relative error")
    for axis, mask in zip(axes, MASKS):
        drawn = [(method, "o-", COLOURS[method], bench[method, mask]) for method in APPROXIMATE]
        drawn += [(*PEERS[name], peers[name, mask]) for name in AUTHORS]
        for label, style, colour, every in drawn:
            rows = [row for row in every if float(row["error"]) > 1e-5]  # the others were too short to approximate
            points = list(zip(numbers(rows, "seconds"), numbers(rows, "error")))
            if points:
                axis.plot(*zip(*points), style, color=colour, label=label)
            for row, point in zip(rows, points):
                axis.annotate(tokens(row["n"]), point, (0, 6), textcoords="offset points", ha="center", fontsize=8)
    save(figure, axes, path)


def fronts(path: str) -> dict[tuple[str, str], list[Row]]:
    """For each set and front, the means over heads and seeds at every budget or tolerance."""
    found: dict[tuple[str, str], dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in csv.DictReader(line for line in pathlib.Path(path).read_text().splitlines() if line[:1] != "#"):
        tolerance = float(row["tolerance"])
        front, budget = ("tolerance", tolerance) if tolerance else (row["preset"], float(row["scale"]))
        found[row["set"], front][budget].append(row)
    return {key: [mean_row(rows) for _, rows in sorted(points.items())] for key, points in found.items()}


def mean_row(rows: list[Row]) -> Row:
    columns = [*QUALITY_COSTS, *(column for column, _ in QUALITY_SETS.values() if rows[0][column])]
    return rows[0] | {column: str(statistics.fmean(numbers(rows, column))) for column in columns}


def plot_quality(found: dict[tuple[str, str], list[Row]], path: pathlib.Path) -> None:
    shown = [name for name in QUALITY_SETS if any(key[0] == name for key in found)]
    size = (0.5 + 3 * len(shown), 6)
    figure, axes = plt.subplots(len(QUALITY_COSTS), len(shown), figsize=size, squeeze=False, layout="constrained")
    for name, column in zip(shown, axes.T):
        error, title = QUALITY_SETS[name]
        column[0].set_title(title)
        for (cost, label), axis in zip(QUALITY_COSTS.items(), column):
            axis.set(xscale="log", yscale="log", xlabel=label)
            for front, (front_label, colour) in QUALITY_FRONTS.items():
                if rows := found.get((name, front)):
                    axis.plot(numbers(rows, cost), numbers(rows, error), "o-", color=colour, label=front_label)
            for row in found.get((name, "tolerance"), []):
                point = (float(row[cost]), float(row[error]))
                axis.annotate(row["tolerance"], point, (4, 4), textcoords="offset points", fontsize=8)
            for scale in (axis.xaxis, axis.yaxis):
                scale.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
                scale.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axis.minorticks_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("relative error")
    save(figure, axes.flat, path)


def scan_front(row: Row) -> tuple[str, float]:
    """Which curve a row of bench_scan belongs to, and by what it is one of many there."""
    name = row["point"].partition(":")[0]
    tolerance, budget = float(row["tolerance"]), float(row["sample_size"])
    if name in ("default", "scan"):
        return ("scan", tolerance) if tolerance else ("budget", budget)
    return name, budget


def scan_curves(rows: list[Row]) -> dict[str, list[tuple[float, float, Row]]]:
    """For each front, means over heads, in order of what they are marked by: time over exact,
    that mark, quantiles."""
    found = defaultdict(list)
    for same in grouped(rows, "point").values():
        front, by = scan_front(same[0])
        time = statistics.fmean(1 / x for x in numbers(same, "speed"))
        means = {quantile: str(statistics.fmean(numbers(same, quantile))) for quantile in SCAN_QUANTILES}
        found[front].append((time, by, means))
    return {front: sorted(points, key=lambda point: point[1]) for front, points in found.items()}


def plot_scan(rows: list[Row], path: pathlib.Path) -> None:
    """The causal rows of the first length."""
    rows = [row for row in rows if row["mask"] == "causal" and row["n"] == rows[0]["n"]]
    shown = [name for name in KINDS if any(kind(row["head"]) == name for row in rows)]
    size = (max(9.0, 0.5 + 3.2 * len(shown)), 4.6)
    figure, axes = plt.subplots(1, len(shown), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for name, axis in zip(shown, axes.flat):
        axis.set(yscale="log", title=SCAN_KINDS[name], xlabel="time over exact")
        curves_of = scan_curves([row for row in rows if kind(row["head"]) == name])
        for front, (label, colour) in SCAN_FRONTS.items():
            points = curves_of.get(front, [])
            for quantile, (line, marker, _) in SCAN_QUANTILES.items():
                drawn = [(time, float(row[quantile]), by) for time, by, row in points]
                drawn = [point for point in drawn if point[1] > LEAST_DRAWN]
                x, y = [time for time, _, _ in drawn], [error for _, error, _ in drawn]
                axis.plot(x, y, line + marker, color=colour, label=label if quantile == "q50" else None)
                for time, error, by in drawn if front in ("scan", "budget") and quantile == "q99" else []:
                    axis.annotate(f"{by:g}", (time, error), (4, 4), textcoords="offset points", fontsize=8)
        for line, marker, label in SCAN_QUANTILES.values():
            axis.plot([], [], line + marker, color=INK, label=label)
        axis.axvline(1, color=INK, linewidth=1)
        axis.set_xlim(left=0)
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes[0, 0].set_ylabel("relative error of a query")
    save(figure, axes.flat, path)


def plot_scaling(cases: dict[tuple[str, ...], list[Row]], path: pathlib.Path) -> None:
    """Simulated efficiency over workers, one head: a panel for each mask, a line for each method and length."""
    figure, axes = plt.subplots(1, len(MASKS), figsize=(9.0, 4.2), sharey=True, layout="constrained")
    lengths = sorted({int(n) for _, _, n, _ in cases})
    for mask, axis in zip(MASKS, axes.flat):
        axis.set(xscale="log", title=f"{mask} attention, one head", xlabel="workers", ylim=(0, 1.03))
        for (method, of_mask, n, heads), rows in cases.items():
            if (of_mask, heads) != (mask, "1"):
                continue
            line = SCALING_LINES[min(lengths.index(int(n)), len(SCALING_LINES) - 1)]
            x, y = [int(row["workers"]) for row in rows], [float(row["efficiency"]) for row in rows]
            axis.plot(x, y, line, color=SCALING_COLOURS[method], label=f"{method}, {n}")
        axis.xaxis.set_major_locator(ticker.LogLocator(base=2))
        axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%d"))
        axis.minorticks_off()
    axes[0].set_ylabel("efficiency")
    save(figure, axes.flat, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", metavar="BENCH_CSV", nargs="?")
    parser.add_argument("--peers", metavar="PEERS_CSV")
    parser.add_argument("--quality", metavar="QUALITY_CSV")
    parser.add_argument("--scan", metavar="SCAN_CSV", type=pathlib.Path)
    parser.add_argument("--scaling", metavar="SCALING_CSV", type=pathlib.Path)
    parser.add_argument(
        "--into", metavar="FOLDER", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent / "docs"
    )
    options = parser.parse_args()
    if not (options.bench or options.quality or options.scan or options.scaling):
        parser.error("nothing to draw: give BENCH_CSV, --quality, --scan or --scaling")
    options.into.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        if options.bench:
            bench = curves(read_table(options.bench), "method")
            peers = curves(read_table(options.peers) if options.peers else [], "name")
            plot_time(bench, peers, options.into / "time.svg")
            plot_speedup(bench, options.into / "speedup.svg")
            plot_error(bench, peers, options.into / "error.svg")
        if options.quality:
            plot_quality(fronts(options.quality), options.into / "quality.svg")
        if options.scan:
            plot_scan(of_first_isa(read(options.scan)), options.into / "scan.svg")
        if options.scaling:
            plot_scaling(cases(options.scaling), options.into / "scaling.svg")


if __name__ == "__main__":
    main()
