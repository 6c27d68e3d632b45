"""Whether a backend computes the same as llama.cpp without it, on each of random_models.py's models.

    python3 examples/ggml/same_models.py --evaluate BINARY --backend LIBRARY --models FOLDER [--only NAME,...]
        [--threads N]

Needs Python only. Every model reads 600 tokens, 128 or 512 at once or one by one, and goes on with 64; with the library
both HYPERATTN_GGML=exact and force, and without it. A model is the same if

- with a cache of float32 no logit differs by more than 1e-3 of the largest, and the 64 tokens are those of llama.cpp
  with flash attention or without;
- with a cache of float16 logits are no further from those of float32 than llama.cpp's own are. Those of float32 are
  computed without flash attention, since llama.cpp rounds keys and values to float16 for it whatever the cache is. The
  distance is the root mean square over all positions, of which 2 % are granted as chance;
- the library has run operations: in each run by force, and where tokens come at once by exact, which leaves to ggml
  what is too little to be worth it.

Tokens read one by one are compared by the second rule only: there llama.cpp rounds more than keys and values, and
differs from itself by more than 1e-3. Prints a table and exits with 1 if a model is not the same.
"""

import argparse
import array
import dataclasses
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile

LARGEST_DIFFERENCE = 1e-3
CHANCE = 1.02
UBATCHES = 128, 512, 1
MODES = "exact", "force"
N_POSITIONS, N_GREEDY = 600, 64
SECONDS = 120  # a run takes one or two


class Failure(Exception):
    """A run that has no result; says why."""


@dataclasses.dataclass(frozen=True)
class Setup:
    binary: str
    backend: str
    models: pathlib.Path
    scratch: pathlib.Path
    threads: int


@dataclasses.dataclass(frozen=True)
class Run:
    logits: array.array
    tokens: list[str]
    here: int  # operations on the backend
    refused: int


@dataclasses.dataclass
class Distances:
    """To the logits of float32, where the ratio is worst."""

    ours: float = 0
    stock: float = 0

    def add(self, ours: float, stock: float) -> None:
        if ours * self.stock >= self.ours * stock:
            self.ours, self.stock = ours, stock

    def __str__(self) -> str:
        return f"{self.ours:.1e} / {self.stock:.1e}"


@dataclasses.dataclass
class Row:
    """A model in one mode: the worst of all runs, and what is wrong."""

    model: str
    exercises: str
    mode: str
    difference: float = 0
    is_text_equal: bool = True
    at_once: Distances = dataclasses.field(default_factory=Distances)
    one_by_one: Distances = dataclasses.field(default_factory=Distances)
    here: int = 0
    refused: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)

    def demand(self, is_so: bool, otherwise: str) -> None:
        if not is_so and otherwise not in self.wrong:
            self.wrong.append(otherwise)

    def count(self, run: Run, ubatch: int) -> None:
        self.here, self.refused = self.here + run.here, self.refused + run.refused
        self.demand(run.here > 0 or (ubatch == 1 and self.mode != "force"), "nothing ran here")


def count_operations(stderr: str) -> tuple[int, int]:
    """(run here, refused) as HYPERATTN_GGML_STATS has them printed."""
    lines = [line for line in stderr.splitlines() if line.startswith("hyperattn:")]
    here = [re.search(r"(\d+) operations", line) for line in lines]
    refused = [re.search(r"refused (\d+) times", line) for line in lines]
    return sum(int(found[1]) for found in here if found), sum(int(found[1]) for found in refused if found)


def evaluate(setup: Setup, model: str, mode: str | None, ubatch: int, cache: str, flash_attention: str = "on") -> Run:
    """Without the backend if there is no mode."""
    ours = "GGML_BACKEND_PATH", "LD_PRELOAD", "HYPERATTN_"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    if mode:
        environment |= {"GGML_BACKEND_PATH": setup.backend, "HYPERATTN_GGML": mode, "HYPERATTN_GGML_STATS": "1"}
    logits = setup.scratch / "logits"
    call = [setup.binary, str(setup.models / model), "--tokens", str(setup.models / "tokens.txt"),
            "--ubatch", str(ubatch), "--threads", str(setup.threads), "--cache", cache, "--flash-attn", flash_attention,
            "--logits", str(logits), "--positions", str(N_POSITIONS), "--greedy", str(N_GREEDY)]  # fmt: skip
    try:
        done = subprocess.run(call, capture_output=True, text=True, check=True, env=environment, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise Failure(f"no end after {SECONDS} s") from None
    except subprocess.CalledProcessError as why:
        said = [line for line in why.stderr.splitlines() if line.strip()]
        raise Failure(f"exit {why.returncode} {said[-1] if said else ''}".strip()) from None
    return Run(array.array("f", logits.read_bytes()), done.stdout.split(), *count_operations(done.stderr))


def largest_difference(a: array.array, b: array.array) -> float:
    """Of two runs' logits, over the largest of the first."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) / max(map(abs, a))


def distance(a: array.array, b: array.array) -> float:
    """Root mean square of the difference over that of the first."""
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / sum(x * x for x in a))


@dataclasses.dataclass(frozen=True)
class Reference:
    """What llama.cpp computes without the backend."""

    f32: Run
    without_flash: Run
    f16_distance: float


def refer(setup: Setup, model: str, ubatch: int) -> Reference:
    without_flash = evaluate(setup, model, None, ubatch, "f32", "off")
    f32, f16 = (evaluate(setup, model, None, ubatch, cache) for cache in ("f32", "f16"))
    return Reference(f32, without_flash, distance(without_flash.logits, f16.logits))


def compare_f32(setup: Setup, row: Row, ubatch: int, reference: Reference) -> None:
    run = evaluate(setup, row.model, row.mode, ubatch, "f32")
    row.count(run, ubatch)
    difference = largest_difference(reference.f32.logits, run.logits)
    row.difference = max(row.difference, difference)
    row.demand(difference <= LARGEST_DIFFERENCE, "differs")
    # where two tokens are nearly as likely, the error of llama.cpp's own flash attention decides between them
    row.is_text_equal = row.is_text_equal and run.tokens in (reference.f32.tokens, reference.without_flash.tokens)
    row.demand(row.is_text_equal, "another text")


def compare_f16(setup: Setup, row: Row, ubatch: int, reference: Reference) -> None:
    run = evaluate(setup, row.model, row.mode, ubatch, "f16")
    row.count(run, ubatch)
    ours = distance(reference.without_flash.logits, run.logits)
    (row.one_by_one if ubatch == 1 else row.at_once).add(ours, reference.f16_distance)
    row.demand(ours <= CHANCE * reference.f16_distance, "worse in f16")


def check_model(setup: Setup, model: str, exercises: str) -> list[Row]:
    rows = [Row(model, exercises, mode) for mode in MODES]
    for ubatch in UBATCHES:
        reference = refer(setup, model, ubatch)
        for row in rows:
            try:
                compare_f16(setup, row, ubatch, reference)
                if ubatch > 1:
                    compare_f32(setup, row, ubatch, reference)
            except Failure as why:
                row.demand(False, str(why))
    return rows


def print_row(row: Row) -> None:
    print(
        f"| {row.model.removesuffix('.gguf')} | {row.exercises} | {row.mode} | {row.difference:.1e} "
        f"| {'yes' if row.is_text_equal else 'NO'} | {row.at_once} | {row.one_by_one} | {row.here} / {row.refused} "
        f"| {'NO: ' + ', '.join(row.wrong) if row.wrong else 'same'} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluate", required=True, type=pathlib.Path)
    parser.add_argument("--backend", required=True, type=pathlib.Path)
    parser.add_argument("--models", required=True, type=pathlib.Path)
    parser.add_argument("--only", help="models' names, separated by commas")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    models = json.loads((options.models / "models.json").read_text())
    if options.only:
        names = [f"{name}.gguf" for name in options.only.split(",")]
        if unknown := set(names) - set(models):
            sys.exit(f"same_models.py: {options.models} has no {', '.join(sorted(unknown))}")
        models = {name: models[name] for name in names}
    print(
        "| model | what it exercises | mode | f32: largest difference | same text | f16: distance here / llama.cpp's "
        "| of those one by one | operations here / refused | |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    is_good = True
    with tempfile.TemporaryDirectory() as scratch:
        binary, backend = (str(path.resolve()) for path in (options.evaluate, options.backend))
        setup = Setup(binary, backend, options.models, pathlib.Path(scratch), options.threads)
        for model, exercises in models.items():
            try:
                rows = check_model(setup, model, exercises)
            except Failure as why:
                sys.exit(f"same_models.py: {model}, without the backend: {why}")
            for row in rows:
                print_row(row)
                is_good = is_good and not row.wrong
    sys.exit(0 if is_good else "same_models.py: not the same")


if __name__ == "__main__":
    main()
