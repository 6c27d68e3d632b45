"""Runs the MPI examples on this machine, checks what they give, and says how they would grow.

    python3 examples/mpi/run.py --programs FOLDER [--record FILE] [--ci]

FOLDER holds context_parallel and decode; mpirun starts them. Checks, on 1 to 4 ranks: exact results against one process
(2e-6), approximate ones against float64 (no worse than one process by more than a tenth), the balance of ranks (3 % of the
pairs of queries and keys), what they send (keys and values at most once round the ring), the same bits twice, and that
mistakes end every rank with a sentence. Then measures: prefill of 32768 tokens on each of two ranks, of which waiting may
take a tenth of attention; loopback made slow by tc, in a namespace, where that can be made; and the rates that growth.py
takes. --record writes a CSV. --ci leaves out what takes long. Each run has a time limit.
"""

import argparse
import csv
import datetime
import io
import os
import pathlib
import platform
import shutil
import subprocess
import sys

import growth

HERE = pathlib.Path(__file__).resolve().parent
COLUMNS = ["what", "ranks", "tokens", "heads", "kv_heads", "method", "mask", "dtype", "seconds", "attention", "waiting",
           "merging", "bytes", "balance", "from_one", "error", "error_of_one", "hash"]  # fmt: skip
LIMIT = 120  # seconds of a run
RANKS = (1, 2, 3, 4)

Row = dict[str, str]


class Runs:
    def __init__(self, programs: pathlib.Path):
        self.programs = programs
        self.rows: list[Row] = []
        self.failures = 0
        # As root in a container, and more ranks than cores: both are what one machine that stands for several needs.
        self.environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")

    def start(self, program: str, parts: list[tuple[int, list[str]]], before: list[str], mca: list[str]) -> subprocess.CompletedProcess:
        call = [*before, "mpirun", "--oversubscribe", *mca]
        for i, (ranks, options) in enumerate(parts):
            call += [*([":"] if i else []), "-n", str(ranks), str(self.programs / program), *options]
        try:
            return subprocess.run(call, capture_output=True, text=True, timeout=LIMIT, env=self.environment)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(call, 124, "", f"still running after {LIMIT} s")

    def run(self, program: str, ranks: int, options: str, before: list[str] = [], mca: list[str] = []) -> Row | None:
        done = self.start(program, [(ranks, [*options.split(), "--csv"])], before, mca)
        what = f"{program} on {ranks} ranks {options}"
        if done.returncode or not done.stdout.strip():
            self.fail(what, f"exit {done.returncode}: {done.stdout.strip()} {done.stderr.strip()[:400]}")
            return None
        return next(csv.DictReader(io.StringIO(done.stdout), COLUMNS))

    def record(self, row: Row | None, what: str) -> None:
        if row:
            self.rows.append(row | {"what": what})

    def check(self, good: bool, what: str, found: str) -> None:
        if not good:
            self.fail(what, found)

    def fail(self, what: str, found: str) -> None:
        self.failures += 1
        print(f"FAILED: {what}: {found}", file=sys.stderr)

    def must_end(self, program: str, parts: list[tuple[int, str]], sentence: str) -> None:
        """Every rank says the sentence, and the run ends with an error."""
        done = self.start(program, [(ranks, options.split()) for ranks, options in parts], [], [])
        said, ranks = done.stderr.count(sentence), sum(n for n, _ in parts)
        self.check(done.returncode not in (0, 124) and said == ranks, f"{program} {parts}",
                   f"exit {done.returncode}, {said} of {ranks} ranks said: {sentence}\n{done.stderr[:400]}")  # fmt: skip


def progress(text: str) -> None:
    if sys.stdout.isatty():
        print(f"\r{text:<78}", end="", flush=True)


# What every rank count must do: prefill (options), and decode.
PREFILL = ["--tokens 2000", "--tokens 2003 --full", "--tokens 1500 --heads 6 --kv-heads 2 --dtype f16",
           "--tokens 1501 --dtype bf16", "--tokens 5", "--tokens 1", "--tokens 4096 --method default",
           "--tokens 8192 --heads 1 --method linear --seeds 8", "--tokens 8192 --heads 1 --method paper --full"]  # fmt: skip
DECODE = ["--tokens 3000 --steps 20", "--tokens 3001 --steps 9 --dtype f32 --heads 6 --kv-heads 3", "--tokens 0 --steps 5",
          "--tokens 12000 --steps 40 --index", "--tokens 2 --steps 3 --index"]  # fmt: skip


def check_results(runs: Runs) -> None:
    for ranks in RANKS:
        for program, cases in (("context_parallel", PREFILL), ("decode", DECODE)):
            for options in cases:
                progress(f"{program} on {ranks} ranks {options}")
                row = runs.run(program, ranks, options + " --check")
                again = runs.run(program, ranks, options)
                if not row or not again:
                    continue
                runs.record(row, "check")
                what = f"{program} on {ranks} ranks {options}"
                runs.check(row["hash"] == again["hash"], what, f"bits {row['hash']} and {again['hash']}")
                if program == "context_parallel":
                    check_ring(runs, row, what)


def check_ring(runs: Runs, row: Row, what: str) -> None:
    tokens, ranks = int(row["tokens"]), int(row["ranks"])
    once = 2 * tokens * int(row["kv_heads"]) * growth.HEAD_DIM * growth.BYTES[row["dtype"]]
    runs.check(float(row["bytes"]) <= once, what, f"{row['bytes']} bytes sent by a rank, once round the ring is {once}")
    if tokens >= 1000:  # of fewer, one token more or less is more than 3 %
        runs.check(float(row["balance"]) <= 1.03, what, f"balance {row['balance']} on {ranks} ranks")


def check_mistakes(runs: Runs) -> None:
    prefill, decode = "context_parallel", "decode"
    told = "ranks disagree on"
    runs.must_end(prefill, [(2, "--tokens 500"), (1, "--tokens 501")], f"{told} tokens: 500 to 501")
    runs.must_end(prefill, [(1, "--heads 2"), (1, "--heads 4")], f"{told} heads: 2 to 4")
    runs.must_end(prefill, [(1, "--dtype f16"), (2, "--dtype bf16")], f"{told} dtypes")
    runs.must_end(prefill, [(1, "--tokens 100 --check"), (1, "--tokens 100")], f"{told} checks: 0 to 1")
    runs.must_end(prefill, [(3, "--heads 3 --kv-heads 2")], "n_heads is not a multiple of n_kv_heads")
    runs.must_end(prefill, [(4, "--tokens 400 --nan-on 2")], "a key or a value is not finite on rank 2")
    runs.must_end(decode, [(2, "--tokens 400 --nan-on 1")], "a key or a value is not finite on rank 1")
    runs.must_end(decode, [(1, "--index"), (1, "")], f"{told} indices: 0 to 1")


def limited(rate: str) -> list[str] | None:
    """What runs a command in a namespace of its own whose loopback is so slow; None where that cannot be made."""
    name = f"hyperattn-{rate}"
    make = (f"ip netns add {name} && ip netns exec {name} ip link set lo up && "
            f"ip netns exec {name} tc qdisc add dev lo root tbf rate {rate} burst 256kb latency 200ms")  # fmt: skip
    if not shutil.which("ip") or not shutil.which("tc") or subprocess.run(["sh", "-c", make], capture_output=True).returncode:
        release(rate)
        return None
    return ["ip", "netns", "exec", name]


def release(rate: str) -> None:
    subprocess.run(["sh", "-c", f"ip netns del hyperattn-{rate}"], capture_output=True)


def measure(runs: Runs, ci: bool) -> None:
    for method in ("exact",) if ci else growth.METHODS:
        for tokens in (8192, 16384) if ci else (8192, 32768):
            for mask in ("", " --full"):
                progress(f"{method}, {tokens} tokens on one rank{mask}")
                runs.record(runs.run("context_parallel", 1, f"--tokens {tokens} --heads 1 --method {method} --dtype f16{mask}"), "rate")
    for method in ("exact",) if ci else growth.METHODS:
        progress(f"{method}, 32768 tokens on each of two ranks")
        row = runs.run("context_parallel", 2, f"--tokens 65536 --heads 1 --method {method} --dtype f16")
        runs.record(row, "ring")
        if row and method == "exact":
            attention, waiting = float(row["attention"]), float(row["waiting"])
            what = "waiting on two ranks of 32768 tokens"
            runs.check(waiting <= 0.1 * attention or (os.cpu_count() or 1) < 2, what, f"{waiting:.4f} s, attention {attention:.4f} s")
    for ranks in RANKS[:2]:
        for options in ("", " --index"):
            progress(f"decode on {ranks} ranks{options}")
            runs.record(runs.run("decode", ranks, f"--tokens {16384 if ci else 131072}{options}"), "decode")
    for rate in () if ci else ("10gbit", "1gbit", "200mbit"):
        before = limited(rate)
        if before is None:
            print("no network namespace with tc here: no slow loopback")
            return
        for method in ("exact", "linear"):
            progress(f"{method} over {rate}")
            mca = ["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"]
            runs.record(runs.run("context_parallel", 2, f"--tokens 65536 --heads 1 --method {method} --dtype f16", before, mca), rate)
        release(rate)


def write(path: pathlib.Path, rows: list[Row]) -> None:
    cpu = platform.processor() or platform.machine()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if pathlib.Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
    with path.open("w") as file:
        print("# command: cmake --workflow --preset mpi", file=file)
        print(f"# CPU: {cpu}, {os.cpu_count()} processors; date: {datetime.date.today()}", file=file)
        out = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        out.writeheader()
        out.writerows(rows)


def show(rows: list[Row]) -> None:
    shown = ["what", "ranks", "tokens", "method", "mask", "dtype", "attention", "waiting", "merging", "bytes", "balance", "from_one", "error"]
    for row in [dict(zip(shown, shown)), *rows]:
        print("  ".join(row[name][:11].rjust(11) for name in shown))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, required=True)
    parser.add_argument("--record", type=pathlib.Path)
    parser.add_argument("--ci", action="store_true")
    args = parser.parse_args()
    if not shutil.which("mpirun"):
        raise SystemExit("run.py: there is no mpirun (Debian, Ubuntu: openmpi-bin)")
    runs = Runs(args.programs)
    check_results(runs)
    check_mistakes(runs)
    measure(runs, args.ci)
    progress("")
    show(runs.rows)
    if args.record:
        write(args.record, runs.rows)
        if not args.ci:
            print()
            subprocess.run([sys.executable, str(HERE / "growth.py"), "--runs", str(args.record)], check=True)
    if runs.failures:
        raise SystemExit(f"run.py: {runs.failures} checks failed")
    print("run.py: all checks passed")


if __name__ == "__main__":
    main()
