"""What gcov's reports say of the sources in a folder, for coverage.sh:

    python3 tests/coverage.py FOLDER ISAS LINES_WANTED BRANCHES_WANTED REPORT.json...

ISAS is what isas.c prints. Code of a kernel that this machine lacks is counted only where it has run. A line of a
template counts once for each kernel."""

import collections
import json
import pathlib
import re
import sys

# How functions and files are named after the kernel they belong to, more special names first.
NAMED = {"amx": "amx-bf16", "avx512_?bf": "avx512-bf16", "avx512": "avx512", "avx2": "avx2", "neon": "neon"}


def isa_of(text):
    """The kernel that a function's name, or its definition's first lines, belong to."""
    return next((isa for pattern, isa in NAMED.items() if re.search(pattern, text)), None)


def definition_above(text, number):
    """The first lines, to the brace, of the definition that a line stands in: gcov has no names where all is inlined."""
    start = number - 1
    while start > 0 and not re.match(r"[A-Za-z_][^#]*\(", text[start]):
        start -= 1
    return "\n".join(text[start:number]).partition("{")[0]


def main(folder, isas, lines_wanted, branches_wanted, *reports):
    sources = {str(path): path.read_text().split("\n") for path in pathlib.Path(folder).resolve().glob("*.h")}
    absent = {line.split()[1] for line in open(isas) if line.startswith("absent ")}
    run, taken = collections.Counter(), collections.Counter()
    for report in reports:
        for one in map(json.loads, open(report)):
            for file in one["files"]:
                path = str(pathlib.Path(file["file"]).resolve())
                for line in file["lines"] if path in sources else []:
                    number, function = line["line_number"], line.get("function_name")
                    isa = isa_of(function or definition_above(sources[path], number)) or isa_of(pathlib.Path(path).name)
                    place = path, number, isa
                    run[place] += line["count"]
                    for i, branch in enumerate(line["branches"]):
                        taken[place, function, i] += branch["count"]

    left_out = {place: place[2] for place, count in run.items() if not count and place[2] in absent}
    for place in left_out:
        del run[place]
    for key in [key for key, count in taken.items() if not count and key[0][2] in absent]:
        del taken[key]

    for place in sorted(run, key=lambda place: (*place[:2], place[2] or "")):
        path, number, isa = place
        where = f"{pathlib.Path(path).name}:{number}{f' ({isa})' if isa else ''}"
        sides = [count for key, count in taken.items() if key[0] == place]
        if not run[place]:
            print(f"not run {where}: {sources[path][number - 1].strip()}")
        elif 0 in sides:
            print(f"not taken {where} ({sides.count(0)} of {len(sides)}): {sources[path][number - 1].strip()}")
    for isa, n in sorted(collections.Counter(left_out.values()).items()):
        print(f"not counted: the {isa} kernel, {n} lines: this machine has no {isa}")
    lines = 100 * sum(count > 0 for count in run.values()) / len(run)
    branches = 100 * sum(count > 0 for count in taken.values()) / len(taken)
    print(f"lines {lines:.1f} per cent of {len(run)}, branches {branches:.1f} per cent of {len(taken)}")
    return lines < float(lines_wanted) or branches < float(branches_wanted)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
