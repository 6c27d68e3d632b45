"""The speed of llama.cpp with and without the backend: PYTHON examples/ggml/llamacpp_plot.py CSV [--into docs]

PYTHON has matplotlib; CSV is what run.py wrote. Writes llamacpp.svg: prefill and decoding in tokens/s over the length, each
length's fastest round; the same bytes for the same input, for white pages and dark ones.
"""

import argparse
import csv
import pathlib
import sys

import matplotlib.pyplot as plt

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "llm"))
from plot import STYLE  # noqa: E402  # the look of this project's plots

COLOURS = {"stock": "#808890", "exact": "#2f86eb", "default": "#e8833a"}
LABELS = {"stock": "llama.cpp alone", "exact": "with hyperattn, exact", "default": "with hyperattn, default"}
PANELS = [
    (("prefill",), "prefill, tokens/s", "tokens", list(COLOURS)),
    (("little", "decode"), "decoding, tokens/s", "tokens in the cache", ["stock", "exact"]),
]

Row = dict[str, str]


def curve(rows: list[Row], stages: tuple[str, ...], configuration: str) -> dict[int, float]:
    """The fastest round of each length."""
    found: dict[int, float] = {}
    for row in rows:
        if row["stage"] in stages and (row["configuration"], row["metric"]) == (configuration, "tokens_per_second"):
            length = int(row["length"])
            found[length] = max(found.get(length, 0), float(row["value"]))
    return dict(sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", metavar="CSV", type=pathlib.Path)
    parser.add_argument("--into", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2] / "docs")
    options = parser.parse_args()
    rows = list(csv.DictReader(line for line in options.csv.read_text().splitlines() if not line.startswith("#")))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
        for axis, (stages, title, xlabel, configurations) in zip(axes, PANELS):
            for configuration in configurations:
                points = curve(rows, stages, configuration)
                colour, label = COLOURS[configuration], LABELS[configuration]
                axis.plot(list(points), list(points.values()), "o-", color=colour, label=label)
            axis.set(title=title, xlabel=xlabel, ylim=(0, None))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.savefig(options.into / "llamacpp.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
