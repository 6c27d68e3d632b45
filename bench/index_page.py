"""Writes the tables of docs/index.md from its records, docs/index.csv and docs/index-time.csv: python3 bench/index_page.py

A table is a function below (page.py tells where it stands on the page).
"""

import itertools
import pathlib
import statistics

from page import DOCS, Row, fill, machine, markdown, tables

RECORD, TIMES = DOCS / "index.csv", DOCS / "index-time.csv"


def read(path: pathlib.Path) -> list[Row]:
    return list(itertools.chain(*tables(path)))


def steps() -> list[Row]:
    return [row for row in read(RECORD) if int(row["needles"]) == 0]


def percent(row: Row, column: str, digits: int = 2) -> str:
    return f"{100 * float(row[column]):.{digits}f}"


def number(row: Row, column: str, digits: int) -> str:
    return f"{float(row[column]):.{digits}f}"


def errors() -> str:
    columns = ["head", "keys", "tolerance", "% over", "% over twice", "Frobenius", "mean", "truth over estimate: median", "99 %",
               "keys met", "% doubled", "% exact"]
    rows = [
        [row["head"], row["n"], row["tolerance"], percent(row, "over"), percent(row, "twice"), number(row, "frobenius", 4),
         number(row, "mean", 4), number(row, "truth_q50", 2), number(row, "truth_q99", 2), number(row, "keys", 0),
         percent(row, "doubled", 0), percent(row, "exact", 1)]
        for row in steps()
    ]  # fmt: skip
    return markdown(columns, rows)


def times() -> str:
    columns = ["head", "keys", "head dim", "query heads", "exact, us", "index, us", "speed", "keys met", "% doubled", "% exact"]
    rows = [
        [row["head"], row["n"], row["dim"], row["group"], f"{1e6 * float(row['exact_seconds']):.0f}",
         f"{1e6 * float(row['index_seconds']):.0f}", number(row, "speed", 2), number(row, "keys", 0), percent(row, "doubled", 0),
         percent(row, "exact", 0)]
        for row in read(TIMES)
    ]  # fmt: skip
    return markdown(columns, rows)


def judged(what: str, measured: float, digits: int, limit: float, is_least: bool) -> list[str]:
    is_met = measured >= limit if is_least else measured <= limit
    return [what, f"{measured:.{digits}f}{'' if is_met else ': missed'}", f"at {'least' if is_least else 'most'} {limit:g}"]


def speed(n: int, group: int, dim: int = 64) -> float:
    found = [float(row["speed"]) for row in read(TIMES) if (int(row["n"]), int(row["group"]), int(row["dim"])) == (n, group, dim)]
    return statistics.fmean(found)


def targets() -> str:
    rows = steps()
    found = []
    for n, alone, grouped in ((32768, 4.0, 2.5), (131072, 6.0, 4.0)):
        of = "mean of heads" if n == 32768 else "one head"
        found.append(judged(f"{n} keys, speed over exact decode, f16, one query head, {of}", speed(n, 1), 2, alone, True))
        found.append(judged(f"{n} keys, groups of 4", speed(n, 4), 2, grouped, True))
    for tolerance in ("0.1", "0.2"):
        of = [row for row in rows if row["tolerance"] == tolerance]
        over = max(100 * float(row["over"]) for row in of)
        twice = max(100 * float(row["twice"]) for row in of)
        found.append(judged(f"tolerance {tolerance}, each head, % of steps over it", over, 2, 1.0, False))
        found.append(judged(f"tolerance {tolerance}, each head, % of steps over twice", twice, 2, 0.1, False))
    errors_at = [float(row["frobenius"]) for row in rows if row["tolerance"] == "0.1"]
    found.append(judged("tolerance 0.1, Frobenius error, mean of heads", statistics.fmean(errors_at), 3, 0.03, False))
    seen = [row for row in read(RECORD) if int(row["needles"]) > 0]
    made = sum(int(row["needles"]) for row in seen)
    found.append(judged(f"needles lost, of {made}", float(sum(int(row["lost"]) for row in seen)), 0, 0, False))
    found.append(judged("append, ns a key, least of all rows", min(float(row["append_ns"]) for row in rows), 0, 150, False))
    found.append(judged("bytes a key, head dim 64", max(float(row["bytes_a_key"]) for row in rows), 1, 20, False))
    return markdown(["", "measured", "target"], found)


if __name__ == "__main__":
    made = {"machine": lambda: machine(RECORD, TIMES), "targets": targets, "errors": errors, "times": times}
    fill(DOCS / "index.md", made, lambda name: TIMES if name == "times" else RECORD)
