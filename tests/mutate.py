#!/usr/bin/env python3
"""Mutation testing of hyperattn.h: does a test fail when one token of the implementation is wrong?

    python3 tests/mutate.py [--mutants 300] [--seed 1] [--jobs 2] [--timeout 60] [--resume FILE] [--again]
                            [--sanitizers]

Every mutant is the header with one change (in one kernel, where a source is included once for each); survivors
are named by source and line too. The code that this machine runs is cut in as many strata of
lines as mutants are wanted, and each stratum gives one, so that they lie evenly and a seed always means the
same ones. A mutant goes through programs of the unit tests, the quick ones first, until one does not build,
fails, crashes or hangs:
  1. tcc, without SIMD         (where tcc is installed; code of the vector kernels skips 1 and 2)
  2. gcc -O1, without SIMD     (those that tcc did not run)
  3. gcc -O1, every kernel; mutants in vector kernels also without AVX-512
  4. with --sanitizers: gcc -O1, address and undefined behaviour, some of what the preset "sanitize" runs
A survivor of 2 whose machine code by gcc -O2 is the original's is counted as equivalent. FILE gets a line
per mutant, tab-separated: line, column, original, mutated, fate, of which the last counts; an interrupted
run goes on from it, and --again runs what it says survived once more, for new tests."""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

TESTS = pathlib.Path(__file__).resolve().parent
HEADER = TESTS.parent / "hyperattn.h"


def units(mark):
    """The units that units.txt gives this mark; what marks mean stands there."""
    lines = (TESTS / "units.txt").read_text().splitlines()
    return [line.split()[0] for line in lines if line[:1] not in ("", "#") and mark in line.split()[1:]]


SLOW = units("slow")
QUICK = [name for name in units("mutants") if name not in SLOW]
VECTOR, PLAIN = units("vector"), units("plain")
FLAGS = [
    "-DHYPERATTN_IMPLEMENTATION",
    "-std=c11",
    "-w",
    f'-DTEST_DATA="{TESTS}/data"',
    f'-DSOURCE_DIR="{TESTS.parent}"',
    "-D_POSIX_C_SOURCE=200809L",
]
COMPILERS = {
    "tcc": ["tcc", "-DHYPERATTN_NO_SIMD"],
    "scalar": ["gcc", "-O1", "-DHYPERATTN_NO_SIMD"],
    "all": ["gcc", "-O1"],
    "AVX2": ["gcc", "-O1", "-DHYPERATTN_NO_AVX512"],
    "sanitize": ["gcc", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}

Site = collections.namedtuple("Site", "line column original mutated")


# ---- Mutants ----

SWAPS = {
    "+": ["-"],
    "-": ["+"],
    "*": ["/"],
    "/": ["*"],
    "%": ["/"],
    "<": ["<=", ">="],
    "<=": ["<", ">"],
    ">": [">=", "<="],
    ">=": [">", "<"],
    "==": ["!="],
    "!=": ["=="],
    "&&": ["||"],
    "||": ["&&"],
    "!": [""],
    "&": ["|"],
    "|": ["&"],
    "^": ["&"],
    "<<": [">>"],
    ">>": ["<<"],
    "++": ["--"],
    "--": ["++"],
    "+=": ["-="],
    "-=": ["+="],
    "*=": ["/="],
    "|=": ["&="],
    ">>=": ["<<="],
    "hai_min": ["hai_max"],
    "hai_max": ["hai_min"],
    "hai_most": ["hai_mutant_least"],
    "hai_ceil_div": ["hai_mutant_div"],
}
HELPERS = (
    "#define hai_mutant_div(a, b) ((a) / (b))\n#define hai_mutant_least(a, b) ((a) < (b) ? (a) : (b))\n"
)
TOKEN = re.compile(
    r"(?P<number>(?:0[xX][0-9a-fA-F]+|\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)[uUlLfF]*)|(?P<word>[A-Za-z_]\w*)"
    r'|(?P<string>"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\')'
    r"|(?P<operator>>>=|<<=|##|->|\+\+|--|&&|\|\||[-+*/%&|^<>=!]=|<<|>>|[-+*/%<>=!&|^~?:;,.(){}\[\]#\\])"
)
TYPES = set("void char short int long float double unsigned signed const static struct size_t".split())


def blank_comments(text):
    """The same text with spaces for comments, lines and columns kept."""
    pattern = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.S)
    return pattern.sub(lambda m: m[0] if m[0][0] == '"' else re.sub(r"[^\n]", " ", m[0]), text)


def active_lines(lines, flags):
    """Which lines the preprocessor keeps: a marker behind each conditional shows if it passes there."""
    conditional, source, pending = re.compile(r"\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b"), [], False
    for number, line in enumerate(lines):
        source.append(line)
        pending = pending or bool(conditional.match(line))
        if pending and not line.rstrip().endswith("\\"):
            source.append(f"hai_marker {number} ;")
            pending = False
    out = subprocess.run(
        ["gcc", "-E", "-P", "-DHYPERATTN_IMPLEMENTATION", *flags, "-xc", "-"],
        check=True,
        input="\n".join(source),
        text=True,
        capture_output=True,
    ).stdout
    seen = {int(n) for n in re.findall(r"hai_marker (\d+) ;", out)}
    active, now, pending = [], True, False
    for number, line in enumerate(lines):
        pending = pending or bool(conditional.match(line))
        active.append(now and not pending)
        if pending and not line.rstrip().endswith("\\"):
            now, pending = number in seen, False
    return active


def other_number(text):
    """What stands in a number's place."""
    match = re.fullmatch(r"(0[xX][0-9a-fA-F]+|[\d.]+(?:[eE][-+]?\d+)?)([uUlLfF]*)", text)
    if not match:
        return []
    digits, suffix = match.groups()
    if re.match(r"0[xX]", digits):
        value = int(digits, 16)
        return [hex(value + 1) + suffix] + ([hex(value - 1) + suffix] if value else [])
    if re.search(r"[.eE]", digits):
        value = float(digits)
        return [("1.0" if value == 0.0 else repr(value * 1.01)) + suffix]
    value = int(digits)
    return [str(value + 1) + suffix] + ([str(value - 1) + suffix] if value else [])


def sites_of(number, line, before, types):
    """All mutants of a line of code. `before`: the last character of code above it."""
    tokens = [(m.lastgroup, m[0], m.start()) for m in TOKEN.finditer(line)]
    sites, start = [], 0
    define = re.match(r"\s*#\s*define\s+\w+(\([^)]*\))?", line)
    if define:
        start = define.end()
    elif re.match(r"\s*#", line):
        return []
    for i, (kind, text, column) in enumerate(tokens):
        if column < start:
            continue
        last = tokens[i - 1] if i else (None, "", 0)
        after = tokens[i + 1][1] if i + 1 < len(tokens) else ""
        if kind == "number":
            if last[1] != "##":
                sites += [Site(number, column, text, new) for new in other_number(text)]
        elif text in SWAPS:
            binary = last[0] in ("word", "number") or last[1] in (")", "]")
            if text in ("*", "&", "-", "+"):
                pointer = last[1] in types or last[1].endswith("_t") or after in ("*", ")", ",", "const")
                if not binary or last[1] in ("return", "case", "*") or (text == "*" and pointer):
                    continue
            sites += [Site(number, column, text, new) for new in SWAPS[text]]
    code = line.rstrip(" \\")
    stripped = code.strip()
    indent = len(code) - len(code.lstrip())
    if define or code.count("(") != code.count(")") or code.count("{") != code.count("}"):
        return sites
    first = tokens[0][1] if tokens else ""
    condition = re.match(r"(?:\} else )?if (\(.*)", stripped)
    if condition:
        at = line.index("if (") + 3
        level = 0
        for end in range(at, len(line)):
            level += {"(": 1, ")": -1}.get(line[end], 0)
            if not level:
                sites.append(Site(number, at, line[at : end + 1], "(!" + line[at : end + 1] + ")"))
                break
        if stripped.endswith(";") and "else" not in stripped and before in ";{}":
            sites.append(Site(number, indent, stripped, ";"))
    elif (
        stripped.endswith(";")
        and before in ";{})"
        and first not in types | {"return", "typedef", "enum", "for"}
    ):
        if first in ("break", "continue") or (
            re.match(r"[\w*(+-]", stripped) and not re.match(r"\w+ \*?\w+[,; =]", stripped)
        ):
            sites.append(Site(number, indent, stripped, ";"))
    return sites


def make_mutants(count, seed):
    text = HEADER.read_text()
    raw, lines = text.split("\n"), blank_comments(text).split("\n")
    first = next(i for i, line in enumerate(lines) if "#define HYPERATTN_IMPLEMENTED" in line) + 1
    active, scalar = active_lines(lines, []), active_lines(lines, ["-DHYPERATTN_NO_SIMD"])
    types = (
        TYPES
        | set(re.findall(r"^\} (\w+);", "\n".join(lines), re.M))
        | {"hai_index", "hai_tile", "__m512", "__m256"}
    )
    by_line, before = [], ";"
    for number in range(first, len(lines)):
        line = lines[number]
        sites = sites_of(number, line, before, types) if active[number] and "#undef" not in line else []
        if sites:
            by_line.append((sites, not scalar[number]))
        if line.strip(" \\"):
            before = line.strip(" \\")[-1]
    chance, mutants = random.Random(seed), []
    for i in range(count):
        stratum = by_line[len(by_line) * i // count : len(by_line) * (i + 1) // count] or [
            chance.choice(by_line)
        ]
        sites, simd = chance.choice(stratum)
        kinds = collections.defaultdict(list)
        for site in sites:
            kinds["number" if site.original[0] in "0123456789." else site.original].append(site)
        mutants.append((chance.choice(kinds[chance.choice(sorted(kinds))]), simd))
    return raw, first, mutants, len(by_line)


def places(raw):
    """The source and its line that each line of the header comes from."""
    at, name, out = {}, None, []
    for line in raw:
        seam = re.fullmatch(r"/\* ======== (src/\w+\.h)(, continued)? ======== \*/", line)
        if seam:
            name = seam[1]
            at[name] = at[name] if seam[2] else -1  # the empty line that follows is #include's, or none
            out.append(name)
            continue
        if name:
            at[name] += 1
        out.append(f"{name}:{at[name]}" if name else "")
    return out


def mutated(raw, first, site):
    line = raw[site.line]
    assert line[site.column :].startswith(site.original), site
    changed = line[: site.column] + site.mutated + line[site.column + len(site.original) :]
    return "\n".join(
        [*raw[:first], HELPERS + raw[first], *raw[first + 1 : site.line], changed, *raw[site.line + 1 :]]
    )


# ---- Trials ----


def run(command, folder, seconds):
    """None where it succeeds, else why not. Seconds are the processor's, whatever else it does."""

    def limit():
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28))

    try:
        result = subprocess.run(
            command,
            cwd=folder,
            timeout=10 * seconds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=limit,
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    if result.returncode == -signal.SIGKILL:  # of the limit on time
        return "hangs"
    if result.returncode < 0:
        return "crashes"
    return "fails" if result.returncode else None


class Trial:
    def __init__(self, header, timeout):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="mutant"))
        self.timeout = timeout
        (self.folder / "hyperattn.h").write_text(header)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder, ignore_errors=True)

    IMPLEMENTATION = ["gcc", "-std=c11", "-w", "-DHYPERATTN_IMPLEMENTATION", "-xc", "hyperattn.h"]

    def compiles(self):
        return run([*self.IMPLEMENTATION, "-fsyntax-only"], self.folder, 300) is None

    def code(self):
        return subprocess.run(
            [*self.IMPLEMENTATION, "-O2", "-S", "-o-"], cwd=self.folder, capture_output=True
        ).stdout

    def test(self, compiler, name):
        program = self.folder / "program"
        build = [
            *COMPILERS[compiler],
            *FLAGS,
            f"-I{self.folder}",
            str(TESTS / f"test_{name}.c"),
            "-o",
            str(program),
            "-lcmocka",
            "-lm",
        ]
        if run(build, self.folder, 300):
            return "does not build"
        return run([str(program)], self.folder, self.timeout * (5 if compiler == "sanitize" else 1))


def programs(with_sanitizers):
    tcc = shutil.which("tcc") is not None
    yield from (("tcc" if tcc else "scalar", name) for name in QUICK)
    yield from (("scalar", name) for name in SLOW)
    yield from (("all", name) for name in QUICK + SLOW)
    yield from (("AVX2", name) for name in units("avx2"))
    if with_sanitizers:
        yield from (("sanitize", name) for name in units("sanitized"))


def fate(header, simd, plan, timeout, original_code):
    with Trial(header, timeout) as trial:
        compared = False
        for compiler, name in (
            sorted(plan, key=lambda p: p[0] != "all" or p[1] not in VECTOR) if simd else plan
        ):
            if compiler in (("tcc", "scalar") if simd else ("AVX2",)):
                continue
            dear = compiler not in ("tcc", "scalar") and not (simd and name in VECTOR)
            if dear and not compared:
                if not trial.compiles():
                    return "NOT COMPILED"
                if trial.code() == original_code:
                    return "EQUIVALENT CODE"
                compared = True
            if not simd and compiler == "all" and name in PLAIN:
                continue
            why = trial.test(compiler, name)
            if why == "does not build" and not trial.compiles():
                return "NOT COMPILED"
            if why:
                return f"killed by {name} ({compiler}): {why}"
        return "SURVIVED"


def escape(text):
    return text.replace("\t", " ").replace("\n", " ")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=60, help="seconds that a test program may take")
    parser.add_argument("--resume", metavar="FILE", help="results so far, and where new ones go")
    parser.add_argument("--again", action="store_true", help="run the survivors in FILE once more")
    parser.add_argument("--sanitizers", action="store_true", help="the fourth round too")
    parser.add_argument(
        "--trust", action="store_true", help="do not run the tests on the header as it is first"
    )
    parser.add_argument("--list", action="store_true", help="only show the mutants")
    options = parser.parse_args()

    raw, first, mutants, n_lines = make_mutants(options.mutants, options.seed)
    print(f"{len(mutants)} mutants, from {n_lines} lines of code", file=sys.stderr)
    if options.list:
        for site, simd in mutants:
            print(
                site.line + 1, escape(site.original), "->", escape(site.mutated), "(SIMD)" if simd else ""
            )
        return 0

    done = {}
    if options.resume and os.path.exists(options.resume):
        for line in open(options.resume):
            fields = line.rstrip("\n").split("\t")
            done[tuple(fields[:4])] = fields[4]
    if options.again:
        done = {key: value for key, value in done.items() if value != "SURVIVED"}

    def key(site):
        return str(site.line + 1), str(site.column + 1), escape(site.original), escape(site.mutated)

    # Only programs that the header as it is passes can judge a mutant.
    plan = []
    with Trial(
        "\n".join([*raw[:first], HELPERS + raw[first], *raw[first + 1 :]]), options.timeout
    ) as trial:
        if not trial.compiles():
            sys.exit("the header itself does not compile")
        for compiler, name in programs(options.sanitizers):
            start, why = time.time(), None if options.trust else trial.test(compiler, name)
            if why:
                print(f"left out: {name} by {compiler} {why} without any mutation", file=sys.stderr)
            else:
                plan.append((compiler, name))
            print(f"  {compiler} {name}: {time.time() - start:.1f} s", file=sys.stderr)
        original_code = trial.code()

    lock, start = threading.Lock(), time.time()
    out = open(options.resume, "a") if options.resume else sys.stdout
    todo = [(site, simd) for site, simd in dict.fromkeys(mutants) if key(site) not in done]
    random.Random(options.seed).shuffle(todo)  # what an interrupted run has done lies evenly too

    def work(item):
        site, simd = item
        result = fate(mutated(raw, first, site), simd, plan, options.timeout, original_code)
        with lock:
            done[key(site)] = result
            print(*key(site), result, sep="\t", file=out, flush=True)
            if sys.stderr.isatty():
                survived = sum(value == "SURVIVED" for value in done.values())
                print(
                    f"\r{len(done)} of {len(mutants)}, {survived} survive, {time.time() - start:.0f} s ",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(work, todo))

    wanted = {key(site): done[key(site)] for site, _ in mutants}
    stillborn = sum(value == "NOT COMPILED" for value in wanted.values())
    same = sum(value == "EQUIVALENT CODE" for value in wanted.values())
    killed = sum(value.startswith("killed") for value in wanted.values())
    total = len(wanted) - stillborn - same
    print(f"\n{len(wanted)} mutants: {stillborn} do not compile, {same} have the original's machine code")
    print(f"{killed} of {total} killed, {100.0 * killed / max(1, total):.1f} per cent; survivors:")
    sources = places(raw)
    for (line, column, original, new), value in wanted.items():
        if value == "SURVIVED":
            where, text = sources[int(line) - 1], raw[int(line) - 1].strip()
            print(f"  {where} ({line}:{column}): {original} -> {new or 'nothing'}    {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
