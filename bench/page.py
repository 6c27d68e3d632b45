"""What the pages of measurements share: reading a record, and writing tables into a page.

A table stands between <!-- NAME --> and <!-- end --> on the page. A record is what record.h writes.
"""

import csv
import itertools
import pathlib
from collections.abc import Callable

DOCS = pathlib.Path(__file__).parent.parent / "docs"

Row = dict[str, str]


def tables(path: pathlib.Path) -> list[list[Row]]:
    """A record's tables, which empty lines part, without comment lines."""
    lines = (line for line in path.read_text().splitlines() if not line.startswith("#"))
    parts = [list(part) for is_line, part in itertools.groupby(lines, lambda line: bool(line.strip())) if is_line]
    return [list(csv.DictReader(part)) for part in parts]


def head(path: pathlib.Path) -> list[str]:
    return [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]


def machine(*records: pathlib.Path) -> str:
    """The heads of records, indented as the page has them."""
    return "\n".join(f"    {line}" for path in records for line in head(path))


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A table; nothing where it has no rows."""
    lines = [columns, ["---"] * len(columns), *rows] if rows else []
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines).replace("| --- ", "|---")


def fill(page: pathlib.Path, made: dict[str, Callable[[], str]], record_of: Callable[[str], pathlib.Path]) -> None:
    """Writes every table into its place; record_of tells which record a table is made from."""
    text = page.read_text()
    for name, table in made.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not begin or not end:
            raise SystemExit(f"{page.name} has no place for {name}")
        written = table()
        if not written:
            raise SystemExit(f"docs/{record_of(name).name} has no rows for {name}")
        text = before + begin + written + "\n" + end + after
    page.write_text(text)
