"""Writes the tables of docs/decode.md from its records: python3 bench/decode_page.py

A table is a function below (page.py tells where it stands on the page). docs/decode.csv is what bench_decode --csv wrote,
docs/decode-peers.csv what peers.sh --csv did.
"""

import itertools
import pathlib
from collections.abc import Callable

from page import DOCS, Row, fill, head, markdown, tables

PAGE = DOCS / "decode.md"
RECORD = DOCS / "decode.csv"
PEERS_RECORD = DOCS / "decode-peers.csv"
LEAST_ERROR = 2e-6


def of_group(name: str) -> list[Row]:
    """Its rows but those of one thread that reads plain memory, which other rows' shares are of."""
    rows = [row for table in tables(RECORD) for row in table if row["group"] == name]
    return [row for row in rows if row["dtype"] or row["over"]]


def is_compared(row: Row) -> bool:
    """Whether it has a ratio beside its share of reading."""
    return row["over"] != "" and row["share"] != row["ratio"]


def milliseconds(seconds: str) -> str:
    return f"{float(seconds) * 1e3:.3g}" if seconds else ""


def short(error: str) -> str:
    return f"{float(error):.0e}" if error else ""


def judged(measured: float, target: str | float) -> str:
    return f"{measured:.2f}" + (": missed" if target and measured < float(target) else "")


# ---- Tables ----


def targets() -> str:
    """Every target beside what was measured: of several cases, the worst."""
    aims: dict[tuple[str, str], list[float]] = {}
    for row in of_group("bandwidth"):
        what = f"{row['dtype']}, head dim {row['head_dim']}, 1 to 4 rows a kv head, one thread, over reading"
        aims.setdefault((what, row["target"]), []).append(float(row["share"]))
    for group, what in (
        ("threads", "two threads over one, 8 heads over 1 kv head, 32768 keys"),
        ("many", "64 sequences in one call over the same one by one, two threads"),
        ("pages", "shuffled pages of 16 rows over contiguous rows"),
    ):
        for row in of_group(group):
            if is_compared(row) and row["target"]:
                aims.setdefault((what, row["target"]), []).append(float(row["ratio"]))
    rows = [[what, judged(min(measured), target), target] for (what, target), measured in aims.items()]
    for ratio in tables(PEERS_RECORD)[1]:
        if ratio["target"]:
            measured = ratio["of_minima"]
            rows.append([ratio["ratio"], measured and judged(float(measured), ratio["target"]), ratio["target"]])
    error = max(float(row["error"]) for row in itertools.chain(*tables(RECORD)) if row["dtype"] in ("f32", "f16"))
    missed = ": missed" if error > LEAST_ERROR else ""
    rows.append(["error of f32 and f16 caches, at most", f"{error:.1e}{missed}", f"{LEAST_ERROR:.0e}"])
    return markdown(["", "measured", "target"], rows)


def bandwidth() -> str:
    rows = of_group("bandwidth")
    heads = sorted({row["heads"] for row in rows}, key=int)
    cells: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((row["dtype"], row["head_dim"], row["n_key"]), {})[row["heads"]] = row
    found = []
    for (dtype, dim, n), by_heads in cells.items():
        shares = [f"{by_heads[h]['gb_per_s']} ({by_heads[h]['share']})" for h in heads]
        first = by_heads[heads[0]]
        error = max(float(row["error"]) for row in by_heads.values())
        found.append([dtype, dim, n, *shares, first["target"], f"{error:.1e}"])
    return markdown(
        ["cache", "head dim", "keys", *(f"{h} row{'s' * (h != '1')}" for h in heads), "target", "error"], found
    )


def cases(*groups: str) -> Callable[[], str]:
    """A table of the rows of groups as they are."""

    def table() -> str:
        found = []
        for row in itertools.chain(*map(of_group, groups)):
            compared = [row["over"], judged(float(row["ratio"]), row["target"]), row["target"]]
            cells = [row["case"], milliseconds(row["seconds"]), row["gb_per_s"], row["share"]]
            found.append([*cells, *(compared if is_compared(row) else ["", "", ""]), short(row["error"])])
        return markdown(["", "ms", "GB/s", "share of reading", "over", "ratio", "target", "error"], found)

    return table


def crossing() -> str:
    rows = [row for row in of_group("crossing") if row["dtype"] and is_compared(row)]
    queries = sorted({row["n_query"] for row in rows}, key=int)
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        cells.setdefault((row["isa"], row["dtype"], row["heads"]), {})[row["n_query"]] = f"{float(row['ratio']):.2f}"
    found = [[*shape, *(ratios[n] for n in queries)] for shape, ratios in cells.items()]
    return markdown(["ISA", "cache", "heads a kv head", *(f"{n} quer{'ies' if n != '1' else 'y'}" for n in queries)], found)


def peers(column: str, write: Callable[[str], str]) -> Callable[[], str]:
    """A column of the peers' record: a row for each cache, a column for each contender."""

    def table() -> str:
        cells: dict[tuple[str, ...], dict[str, str]] = {}
        for row in tables(PEERS_RECORD)[0]:
            name, dtype = row["name"].rsplit(" ", 1)
            name = name.replace("exact", "this library") + (", 2 threads" if row["threads"] == "2" else "")
            shape = (dtype, row["heads"], row["dim"], row["n"])
            cells.setdefault(shape, {})[name] = write(row[column]) or ("absent" if row["note"] else "")
        names = [
            name for name in dict.fromkeys(itertools.chain(*cells.values())) if any(c.get(name) for c in cells.values())
        ]
        found = [[*shape, *(by_name.get(name, "") for name in names)] for shape, by_name in cells.items()]
        return markdown(["cache", "heads", "head dim", "keys", *names], found)

    return table


def machine() -> str:
    rates = []
    for case in ("reading, 1 thread", "reading, 2 threads"):
        measured = sorted(float(row["gb_per_s"]) for row in itertools.chain(*tables(RECORD)) if row["case"] == case)
        rates.append(f"{case}: {measured[0]:.0f} to {measured[-1]:.0f} GB/s, table by table")
    return "\n".join(["```", *head(RECORD), *head(PEERS_RECORD), *rates, "```"])


TABLES: dict[str, Callable[[], str]] = {
    "machine": machine,
    "targets": targets,
    "bandwidth": bandwidth,
    "peers": peers("seconds", milliseconds),
    "peers' errors": peers("error", short),
    "threads": cases("threads", "grouped", "ungrouped"),
    "latent": cases("latent"),
    "many": cases("many"),
    "pages": cases("pages"),
    "huge": cases("huge"),
    "crossing": crossing,
}


def record_of(name: str) -> pathlib.Path:
    return PEERS_RECORD if name.startswith("peers") else RECORD


def main() -> None:
    fill(PAGE, TABLES, record_of)


if __name__ == "__main__":
    main()
