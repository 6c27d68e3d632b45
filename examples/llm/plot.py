"""Figure 3 of the paper on this library: PYTHON examples/llm/plot.py LLM_CSV [--into docs]   (PYTHON has matplotlib)

LLM_CSV is what run.py wrote. Writes llm.svg: perplexity and prefill time over the number of approximated layers, for an
essay and for repeated text; the same bytes for the same input, for white pages and dark ones.
"""

import argparse
import csv
import pathlib

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

INK = "#808890"
COLOURS = {"paper": "#e8833a", "default": "#2f86eb"}
STYLE = {
    "svg.hashsalt": "hyperattn", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": INK, "grid.alpha": 0.25,
    "legend.frameon": False, "lines.linewidth": 2, "lines.markersize": 5, "savefig.transparent": True,
}  # fmt: skip

Row = dict[str, str]


def curve(rows: list[Row], text: str, repeat: str, attention: str) -> list[Row]:
    """Rows of one method, with exact attention as zero layers; of several runs, the first."""
    found: dict[int, Row] = {}
    for row in rows:
        if (row["text"], row["repeat"]) == (text, repeat) and row["attention"] in ("exact", attention):
            found.setdefault(int(row["layers"]), row)
    return [found[layers] for layers in sorted(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", metavar="LLM_CSV", type=pathlib.Path)
    parser.add_argument("--into", type=pathlib.Path, default=pathlib.Path(__file__).parents[2] / "docs")
    options = parser.parse_args()
    rows = list(csv.DictReader(line for line in options.csv.read_text().splitlines() if not line.startswith("#")))
    text, tokens = rows[0]["text"], int(rows[0]["tokens"])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.6), layout="constrained")
        panels = (("0", "second_half", "perplexity, essay"), ("1", "second_half", "perplexity, repeated text"),
                  ("0", "prefill_seconds", "prefill, seconds"))  # fmt: skip
        for axis, (repeat, column, title) in zip(axes, panels):
            for attention, colour in COLOURS.items():
                points = curve(rows, text, repeat, attention)
                x, y = [int(row["layers"]) for row in points], [float(row[column]) for row in points]
                axis.plot(x, y, "o-", color=colour, label=attention)
            axis.set(title=title, xlabel="approximated layers", xticks=x)
            axis.set(**({"yscale": "log"} if column == "second_half" else {"ylim": (0, None)}))
            axis.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
            axis.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5) if column != "second_half"
                                         else matplotlib.ticker.LogLocator(subs=(1, 2, 5)))  # fmt: skip
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        figure.suptitle(f"{tokens} tokens; 0 layers is exact attention", fontsize=10)
        figure.savefig(options.into / "llm.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
