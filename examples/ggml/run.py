"""llama.cpp with and without the backend: fetches and builds all, tests, measures, prints the table of targets.

    python3 examples/ggml/run.py --into FOLDER --source REPOSITORY [--ci] [--only STAGE,STAGE] [--backend LIBRARY]

Needs Python 3.10, pip, CMake and a C++ compiler. Stages: fetch (llama.cpp's source, the model, the texts), build
(llama.cpp's programs and the backend), ops, models, prefill, decode, little, perplexity, passkeys, batched, text, ways.
What FOLDER has is not fetched or built again; --only runs some stages and takes the other figures of the table from an
earlier run. Prints the table, writes FOLDER/llamacpp.csv and FOLDER/llamacpp.svg; what each program said is in FOLDER/logs.
Fails if a result is wrong, not if one is slow.
--ci: a part of the tests of the operation and short runs, at most six minutes once llama.cpp is built; no plot.
--backend: another library than the one built here.
"""

import argparse
import csv
import datetime
import os
import pathlib
import platform
import re
import sys
import time
from dataclasses import asdict, fields

from llamacpp_build import PACKAGE, VERSION, Places, StageFailed, build, fetch, run_program, say
from llamacpp_measure import CI_STAGES, STAGES, THREADS, Bench, Row, measure_losses
from llamacpp_targets import judge, print_table
from llamacpp_ways import measure_ways

HERE = pathlib.Path(__file__).resolve().parent
ALL_STAGES = {**STAGES, "ways": measure_ways, "losses": measure_losses}


def read_rows(path: pathlib.Path, without: list[str]) -> list[Row]:
    """An earlier run's rows, without those of the stages named."""
    if not path.exists():
        return []
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    rows = [Row(**{**row, "length": int(row["length"]), "round": int(row["round"]), "value": float(row["value"])})
            for row in csv.DictReader(lines)]  # fmt: skip
    return [row for row in rows if row.stage not in without]


def processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def write_rows(rows: list[Row], path: pathlib.Path) -> None:
    with path.open("w", newline="") as file:
        file.write(f"# examples/ggml/run.py, {datetime.date.today()}; {PACKAGE} {VERSION}; SmolLM2-135M-Instruct Q4_1\n")
        file.write(f"# {processor()}, {os.cpu_count()} processors, {THREADS} threads\n")
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def plot(places: Places, rows: pathlib.Path) -> None:
    try:
        run_program([str(places.python), str(HERE / "llamacpp_plot.py"), str(rows), "--into", str(places.folder)])
        print(f"\nplot: {places.folder / 'llamacpp.svg'}")
    except (StageFailed, OSError) as why:
        print(f"no plot: {why}", file=sys.stderr)


def run_stages(stages: list[str], bench: Bench, is_backend_given: bool, path: pathlib.Path) -> list[str]:
    """Runs the stages and keeps their rows as they come; returns the names of those that could not go on."""
    failed = []
    for stage in stages:
        begin = time.monotonic()
        try:
            if stage == "fetch":
                fetch(bench.places)
            elif stage == "build":
                build(bench.places, is_backend_given, bench.is_ci)
            else:
                ALL_STAGES[stage](bench)
            say(f"{stage}: {time.monotonic() - begin:.0f} s")
        except StageFailed as why:
            say(f"{stage}: FAILED: {why}")
            failed.append(stage)
        if bench.rows:
            write_rows(bench.rows, path)
        if failed and stage in ("fetch", "build"):
            break
    return failed


def read_options() -> argparse.Namespace:
    every = ["fetch", "build", *ALL_STAGES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", required=True, type=pathlib.Path)
    parser.add_argument("--source", type=pathlib.Path, default=HERE.parents[1])
    parser.add_argument("--ci", action="store_true")
    parser.add_argument("--only", metavar="STAGE,STAGE")
    parser.add_argument("--backend", type=pathlib.Path)
    options = parser.parse_args()
    chosen = ["fetch", "build", *CI_STAGES] if options.ci else ["fetch", "build", *STAGES, "ways"]
    options.stages = options.only.split(",") if options.only else chosen
    unknown = [stage for stage in options.stages if stage not in every]
    if unknown:
        parser.error(f"there is no stage {', '.join(unknown)}; stages are {', '.join(every)}")
    return options


def main() -> None:
    options = read_options()
    folder = options.into.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    backend = options.backend or folder / "backend" / "libggml-hyperattn.so"
    places = Places(options.source.resolve(), folder, backend.resolve())
    path = folder / ("llamacpp-ci.csv" if options.ci else "llamacpp.csv")
    bench = Bench(places, options.ci, read_rows(path, options.stages) if options.only else [])
    failed = run_stages(options.stages, bench, options.backend is not None, path)
    table = judge(bench.rows)
    if table:
        threads = f"{THREADS} threads on {os.cpu_count()} processors"
        print(f"\n{PACKAGE} {VERSION}, SmolLM2-135M, {threads}, each over llama.cpp alone")
        print_table(table)
    if bench.rows and not options.ci:
        plot(places, path)
    wrong = [row.what for row in table if not row.is_met and not row.is_speed]
    if failed or wrong:
        sys.exit(f"run.py: {', '.join([*(f'the stage {stage} failed' for stage in failed), *wrong])}")


if __name__ == "__main__":
    main()
