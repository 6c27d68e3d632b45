"""Writes the tables of docs/scaling.md from its record, docs/scaling.csv: python3 bench/scaling_page.py

A table is a function below (page.py tells where it stands on the page).
"""

import itertools
import pathlib

from page import DOCS, Row, fill, machine, markdown, tables

RECORD = DOCS / "scaling.csv"
JUDGED = 64  # workers that targets are about
LONGEST = 131072


def read(path: pathlib.Path = RECORD) -> list[Row]:
    return list(itertools.chain(*tables(path)))


def cases(path: pathlib.Path = RECORD) -> dict[tuple[str, ...], list[Row]]:
    """What was simulated: rows of each method, mask, length and number of heads, by workers."""
    found: dict[tuple[str, ...], dict[int, Row]] = {}
    for row in read(path):
        if not row["measured_seconds"]:
            found.setdefault((row["method"], row["mask"], row["n"], row["heads"]), {}).setdefault(int(row["workers"]), row)
    return {case: list(rows.values()) for case, rows in found.items()}


def efficiency() -> str:
    found = []
    for (method, mask, n, heads), rows in cases().items():
        cells = [f"{float(row['efficiency']):.3f}" for row in rows if int(row["workers"]) > 1]
        last = next(row for row in rows if int(row["workers"]) == JUDGED)
        bound = f"{last['bound']}: {last['bound_tasks']} tasks, {float(last['longest_over_mean']):.1f}, {float(last['share_of_loss']):.0%}"
        found.append([method, mask, n, heads, f"{float(rows[0]['seconds']):.4g}", *cells, bound])
    workers = [row["workers"] for row in next(iter(cases().values())) if int(row["workers"]) > 1]
    return markdown(["method", "mask", "tokens", "heads", "one worker, s", *workers, f"what bounds {JUDGED}"], found)


def judged(what: str, measured: float, limit: float) -> list[str]:
    return [what, f"{measured:.3f}{'' if measured >= limit else ': missed'}", f"at least {limit:g}"]


def targets() -> str:
    found = []
    for method, limit in (("exact", 0.9), ("linear", 0.7)):
        row = next(row for row in cases()[method, "causal", str(LONGEST), "1"] if int(row["workers"]) == JUDGED)
        found.append(judged(f"{JUDGED} workers, simulated, one head, {LONGEST} causal, {method}", float(row["efficiency"]), limit))
    for row in read():
        if row["measured_seconds"]:
            ratio = float(row["independent_seconds"]) / float(row["measured_seconds"])
            what = f"one call on {row['workers']} threads, speed over calls at once on one each, {row['method']}, {row['n']} {row['mask']}"
            found.append(judged(what, ratio, 0.97))
    return markdown(["", "figure", "target"], found)


def measured() -> str:
    found = []
    for row in read():
        if row["measured_seconds"]:
            seconds, each = float(row["measured_seconds"]), float(row["independent_seconds"])
            cells = [f"{seconds:.4f}", f"{float(row['seconds']):.4f}", f"{each:.4f}", f"{each / seconds:.3f}"]
            found.append([row["method"], row["mask"], row["n"], row["workers"], *cells])
    return markdown(["method", "mask", "tokens", "threads", "one call, s", "simulated, s", "calls at once, s over their number", "last over first"], found)


if __name__ == "__main__":
    made = {"targets": targets, "efficiency": efficiency, "measured": measured}
    fill(DOCS / "scaling.md", {"machine": lambda: machine(RECORD), **made}, lambda _: RECORD)
