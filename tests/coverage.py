"""What gcov's reports say of the header, for coverage.sh:

    python3 tests/coverage.py HEADER ISAS LINES_WANTED BRANCHES_WANTED REPORT.json...

ISAS is what isas.c prints. Code of a kernel that this machine lacks is counted only where it has run."""

import collections
import json
import re
import sys

# How functions are named after the kernel they belong to, more special names first.
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


def main(header, isas, lines_wanted, branches_wanted, *reports):
    text = open(header).read().split("\n")
    absent = {line.split()[1] for line in open(isas) if line.startswith("absent ")}
    run, taken, functions = collections.Counter(), collections.Counter(), collections.defaultdict(set)
    for report in reports:
        for one in map(json.loads, open(report)):
            for line in (line for file in one["files"] if file["file"] == header for line in file["lines"]):
                number, function = line["line_number"], line.get("function_name")
                run[number] += line["count"]  # the copies of a macro's function are one function
                functions[number] |= {function} - {None}
                for i, branch in enumerate(line["branches"]):
                    taken[number, function, i] += branch["count"]

    left_out = {}
    for number, count in run.items():
        owners = {isa_of(name) for name in functions[number] or {definition_above(text, number)}}
        if not count and owners <= absent:
            left_out[number] = min(owners)
    for number in left_out:
        del run[number]
    for key in [key for key in taken if not taken[key]]:
        if key[0] in left_out or (key[1] and isa_of(key[1]) in absent):
            del taken[key]

    for number in sorted(run):
        sides = [count for key, count in taken.items() if key[0] == number]
        if not run[number]:
            print(f"not run {number}: {text[number - 1].strip()}")
        elif 0 in sides:
            print(f"not taken {number} ({sides.count(0)} of {len(sides)}): {text[number - 1].strip()}")
    for isa, n in sorted(collections.Counter(left_out.values()).items()):
        print(f"not counted: the {isa} kernel, {n} lines: this machine has no {isa}")
    lines = 100 * sum(count > 0 for count in run.values()) / len(run)
    branches = 100 * sum(count > 0 for count in taken.values()) / len(taken)
    print(f"lines {lines:.1f} per cent of {len(run)}, branches {branches:.1f} per cent of {len(taken)}")
    return lines < float(lines_wanted) or branches < float(branches_wanted)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
