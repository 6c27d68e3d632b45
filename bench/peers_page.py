"""Writes the tables of docs/peers.md from its record, docs/peers.csv: python3 bench/peers_page.py

A table is a function below (page.py tells where it stands on the page).
"""

import itertools

from page import DOCS, Row, fill, machine, markdown, tables

RECORD = DOCS / "peers.csv"
SHORT = 30000  # tokens of the first table; longer ones are the second's


def targets() -> str:
    found = []
    for row in tables(RECORD)[1]:
        if row["target"]:
            measured, limit = float(row["of_minima"]), float(row["target"])
            cell = f"{measured:.3g}" + ("" if measured >= limit else ": missed")
            found.append([row["ratio"], cell, f"{float(row['median_of_rounds']):.3g}", row["target"]])
    return markdown(["speed of the first over the second", "of least times", "median of rounds", "at least"], found)


def what(row: Row) -> str:
    threads = "" if row["threads"] == "1" else f", {row['threads']} threads"
    return f"{row['name']}{threads}"


def times(rows: list[Row]) -> str:
    """A line for each contender, a column for each shape: seconds (GFLOP/s, error, note)."""
    shapes = list(dict.fromkeys((row["mask"], row["n"], row["dim"]) for row in rows))
    found: dict[str, dict[tuple[str, ...], str]] = {}
    for row in rows:
        told = ", ".join(cell for cell in (rounded(row["gflops"], ".0f"), rounded(row["error"], ".0e"), row["note"]) if cell)
        cell = f"{float(row['seconds']):.3g}" + (f" ({told})" if told else "")
        found.setdefault(what(row), {})[row["mask"], row["n"], row["dim"]] = cell
    lines = [[name, *(cells.get(shape, "") for shape in shapes)] for name, cells in found.items()]
    return markdown(["", *(f"{mask} {n}, head dim {dim}" for mask, n, dim in shapes)], lines)


def rounded(number: str, how: str) -> str:
    return format(float(number), how) if number else ""


def measured() -> list[Row]:
    return [row for row in tables(RECORD)[0] if row["seconds"] and row["mask"] in ("full", "causal")]


def short() -> str:
    return times([row for row in measured() if int(row["n"]) < SHORT])


def long() -> str:
    return times([row for row in measured() if int(row["n"]) >= SHORT])


def products() -> str:
    rows = [row for row in tables(RECORD)[0] if row["seconds"] and not row["mask"]]
    lines = [[row["name"], f"{float(row['seconds']):.3g} ({rounded(row['gflops'], '.0f')})"] for row in rows]
    return markdown(["", "seconds (GFLOP/s)"], lines)


def absent() -> str:
    """What could not be had, and why."""
    notes = itertools.groupby((row["note"], row["name"]) for row in tables(RECORD)[0] if not row["seconds"])
    return "\n".join(f"- {name}: {note.removeprefix('absent: ')}" for (note, name), _ in notes)


if __name__ == "__main__":
    made = {"targets": targets, "short": short, "long": long, "products": products, "absent": absent}
    fill(DOCS / "peers.md", {"machine": lambda: machine(RECORD), **made}, lambda _: RECORD)
