"""Writes the tables of docs/scan.md from its records: python3 bench/scan_page.py [FOLDER]

A table is a function below (page.py tells where it stands on the page). FOLDER, by default docs, holds scan.md and what
bench_scan --csv wrote, scan.csv and scan-needles.csv. Of rows of the same case the last counts.
"""

import itertools
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterable

from page import DOCS, Row, fill, head, markdown, tables

FOLDER = pathlib.Path(sys.argv[1]) if __name__ == "__main__" and len(sys.argv) > 1 else DOCS
PAGE = FOLDER / "scan.md"
RECORD = FOLDER / "scan.csv"
NEEDLES = FOLDER / "scan-needles.csv"
CASE = ("head", "n", "mask", "isa", "point")
KINDS = ("ordinary", "retrieves", "gauss")
RETRIEVE = ("repeat.", "n16384.l18h8")  # what the names of heads that retrieve begin with
LONG = 32768  # from here on heads are repeated
LONGEST = 131072
JUDGED = "default"
NONE = "none in this record"
INF = float("inf")


def kind(name: str) -> str:
    return "gauss" if name == "gauss" else "retrieves" if name.startswith(RETRIEVE) else "ordinary"


def read(path: pathlib.Path) -> list[Row]:
    rows = itertools.chain(*tables(path))
    return list({tuple(row[column] for column in CASE): row for row in rows}.values())


def of_first_isa(rows: list[Row]) -> list[Row]:
    """Those of the ISA that the machine chose, which is recorded first."""
    return [row for row in rows if row["isa"] == rows[0]["isa"]]


def numbers(rows: Iterable[Row], column: str) -> list[float]:
    return [float(row[column]) for row in rows if row[column]]


def mean(rows: list[Row], column: str, digits: int) -> str:
    found = numbers(rows, column)
    return f"{statistics.fmean(found):.{digits}f}" if found else ""


def largest(rows: list[Row], column: str, digits: int) -> str:
    found = numbers(rows, column)
    return f"{max(found):.{digits}f}" if found else ""


def between(rows: list[Row], column: str, digits: int) -> str:
    found = numbers(rows, column)
    if not found:
        return ""
    ends = [f"{end(found):.{digits}f}" for end in (min, max)]
    return " to ".join(dict.fromkeys(ends))


def grouped(rows: Iterable[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


# ---- Targets ----


def judged(what: str, values: list[float], digits: int, least: float = -INF, most: float = INF) -> list[list[str]]:
    """A target's row, by the values that are nearest to its limits; none where nothing was measured."""
    if not values:
        return []
    sides = [(min(values), f"at least {least:g}")] * (least > -INF) + [(max(values), f"at most {most:g}")] * (most < INF)
    measured = " to ".join(dict.fromkeys(f"{value:.{digits}f}" for value, _ in sides))
    missed = "" if least <= min(values) and max(values) <= most else ": missed"
    return [[what, measured + missed, ", ".join(limit for _, limit in sides)]]


def targets() -> str:
    rows = [row for row in of_first_isa(read(RECORD)) if row["point"] == JUDGED]
    causal = [row for row in rows if row["mask"] == "causal" and int(row["n"]) < LONGEST]
    real = [row for row in causal if kind(row["head"]) != "gauss"]
    found, errors = [], []
    for n, ordinary, retrieving in ((8192, 3.0, 2.1), (16384, 3.9, 2.7), (32768, 4.6, 3.3)):
        by_kind = {k: [row for row in real if row["n"] == str(n) and kind(row["head"]) == k] for k in KINDS}
        if speeds := numbers(by_kind["ordinary"], "speed"):
            errors.append(statistics.fmean(numbers(by_kind["ordinary"], "mean")))
            found += judged(f"ordinary heads, {n}, speed, mean", [statistics.fmean(speeds)], 2, least=ordinary)
        speeds = numbers(by_kind["retrieves"], "speed")
        found += judged(f"each head that retrieves, {n}, speed", speeds, 2, least=retrieving)
    found += judged("ordinary heads, mean relative error, at any of these lengths", errors, 4, most=0.035)
    for mask, speed in (("causal", 6.5), ("full", 7.0)):
        longest = [row for row in rows if row["n"] == str(LONGEST) and row["mask"] == mask]
        found += judged(f"{LONGEST}, {mask}, speed", numbers(longest, "speed"), 2, least=speed)
    gauss = [row for row in rows if kind(row["head"]) == "gauss"]
    found += judged("each real head, time over exact", [1 / x for x in numbers(real, "speed")], 2, most=1.05)
    found += judged("Gaussian rows, time over exact", [1 / x for x in numbers(gauss, "speed")], 2, most=1.2)
    found += judged("each real head, % of queries over the tolerance", numbers(real, "over"), 2, most=1.5)
    found += judged("each real head, % of queries over twice the tolerance", numbers(real, "over_twice"), 3, most=0.1)
    found += judged("truth over estimate, median, each real head", numbers(real, "truth_q50"), 2, least=0.9, most=1.1)
    found += judged("truth over estimate, 99 %, each real head", numbers(real, "truth_q99"), 2, most=2.2)
    lost = [row for row in read(NEEDLES) if row["point"] == JUDGED]
    made = sum(int(row["needles"]) for row in lost)
    found += judged(f"needles lost, of {made}", [float(sum(int(row["lost"]) for row in lost))], 0, most=0)
    return markdown(["", "measured", "target"], found)


# ---- Tables ----


def heads_of(*kinds: str, is_long: bool = False) -> Callable[[], str]:
    """For each length and mask: every point, over the heads of these kinds."""

    def table() -> str:
        rows = [row for row in of_first_isa(read(RECORD)) if kind(row["head"]) in kinds]
        rows = [row for row in rows if (int(row["n"]) >= LONG) == is_long]
        found = []
        for (n, mask, point), of_point in grouped(rows, "n", "mask", "point").items():
            if point == "exact":
                continue
            found.append(
                [
                    n,
                    mask,
                    point,
                    str(len(of_point)),
                    mean(of_point, "speed", 2),
                    between(of_point, "speed", 2),
                    mean(of_point, "mean", 4),
                    mean(of_point, "q50", 4),
                    mean(of_point, "q99", 3),
                    mean(of_point, "q999", 3),
                    largest(of_point, "max", 2),
                    largest(of_point, "over", 2),
                    largest(of_point, "over_twice", 3),
                    between(of_point, "truth_q50", 2),
                    largest(of_point, "truth_q99", 2),
                    mean(of_point, "keys_per_query", 0),
                    mean(of_point, "exact", 1),
                    mean(of_point, "doubled", 1),
                    mean(of_point, "cost", 2),
                ]
            )
        errors = ["mean error", "50 %", "99 %", "99.9 %", "worst", "% over", "% over twice", "truth", "truth 99 %"]
        columns = ["n", "mask", "point", "heads", "speed", "each", *errors]
        return markdown([*columns, "keys", "% exact", "% doubled", "cost"], found) or NONE

    return table


def heads() -> str:
    """Every head by the point that targets are about."""
    found = []
    for row in of_first_isa(read(RECORD)):
        if row["point"] != JUDGED or row["mask"] != "causal":
            continue
        of_head = [row]
        cells = [mean(of_head, "speed", 2), mean(of_head, "mean", 4), mean(of_head, "frobenius", 4)]
        cells += [mean(of_head, column, 3) for column in ("q99", "q999")] + [mean(of_head, "max", 2)]
        cells += [mean(of_head, "over", 2), mean(of_head, "over_twice", 3)]
        cells += [mean(of_head, column, 2) for column in ("truth_q50", "truth_q99")]
        cells += [mean(of_head, "keys_per_query", 0), mean(of_head, "exact", 1), mean(of_head, "doubled", 1)]
        found.append([row["head"], row["n"], *cells])
    errors = ["mean error", "Frobenius", "99 %", "99.9 %", "worst", "% over", "% over twice", "truth", "truth 99 %"]
    return markdown(["head", "n", "speed", *errors, "keys", "% exact", "% doubled"], found)


def isas() -> str:
    """A row for each ISA, a column for each point of the head that several ISAs have."""
    by_case = grouped(read(RECORD), "head", "n", "mask", "point")
    rows = [row for same in by_case.values() if len(same) > 1 for row in same]
    points = [point for point in dict.fromkeys(row["point"] for row in rows) if point != "exact"]
    found = []
    for (isa,), of_isa in grouped(rows, "isa").items():
        cells = {row["point"]: row for row in of_isa}
        exact = f"{float(cells['exact']['seconds']) * 1e3:.3g}"
        speeds = [f"{float(cells[point]['speed']):.2f}" for point in points]
        found.append([isa, of_isa[0]["scan_price"], exact, *speeds])
    return markdown(["ISA", "price of an estimate", "exact, ms", *points], found) or NONE


def needles() -> str:
    found = []
    for (n, point), rows in grouped(read(NEEDLES), "n", "point").items():
        counts = [str(sum(int(row[column]) for row in rows)) for column in ("needles", "lost", "unseen")]
        found.append([n, point, *counts, mean(rows, "mean_error", 4), largest(rows, "max_error", 3)])
    return markdown(["n", "point", "needles", "lost", "unseen", "mean error", "worst"], found)


def machine() -> str:
    """Heads of the records, what they have in common once."""
    return "\n".join(["```", *dict.fromkeys(head(RECORD) + head(NEEDLES)), "```"])


TABLES: dict[str, Callable[[], str]] = {
    "machine": machine,
    "targets": targets,
    "ordinary": heads_of("ordinary"),
    "retrieves": heads_of("retrieves"),
    "gauss": heads_of("gauss"),
    "long": heads_of("ordinary", "retrieves", is_long=True),
    "heads": heads,
    "isas": isas,
    "needles": needles,
}


def record_of(name: str) -> pathlib.Path:
    return NEEDLES if name == "needles" else RECORD


def main() -> None:
    fill(PAGE, TABLES, record_of)


if __name__ == "__main__":
    main()
