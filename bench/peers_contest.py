"""Contenders timed round robin, and ratios of their rates that hold on a noisy machine."""

import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from peers_data import Shape

LEAST = 0.01  # seconds of a turn: shorter calls are repeated
Run = Callable[[], np.ndarray | None]  # one timed call; returns rows of attention, or nothing to judge


class Absent(Exception):
    """A contender is not available on this machine; the text says why."""


@dataclass
class Contender:
    name: str
    shape: Shape
    prepare: Callable[[], Run]
    threads: int = 1
    is_exact: bool = True
    rounds: int = sys.maxsize
    note: str = ""
    seconds: dict[int, float] = field(default_factory=dict)  # by round
    error: float | None = None

    @property
    def key(self) -> str:
        return f"{self.name}, {self.shape.text}" + (f", {self.threads} threads" if self.threads > 1 else "")

    @property
    def best(self) -> float | None:
        return min(self.seconds.values(), default=None)

    def rate(self, round_: int | None = None) -> float:
        return self.shape.work / (self.best if round_ is None else self.seconds[round_])


Judge = Callable[[Contender, np.ndarray], float]


def contest(contenders: list[Contender], rounds: int, judge: Judge) -> None:
    """Those that decode meet those of the same cache, which is in memory only meanwhile; all others meet each other."""
    groups: dict[Shape | None, list[Contender]] = {}
    for c in contenders:
        groups.setdefault(c.shape if c.shape.mask == "decode" else None, []).append(c)
    for group in groups.values():
        compete(group, rounds, judge)
    show("")


def compete(contenders: list[Contender], rounds: int, judge: Judge) -> None:
    """Runs every contender once a round, so that both sides of a ratio see the machine in the same state."""
    runs: dict[int, Run] = {}
    for c in contenders:
        show(f"preparing {c.key}")
        try:
            runs[id(c)] = c.prepare()
        except Absent as why:
            c.note = f"absent: {why}"
    present = [c for c in contenders if id(c) in runs]
    for round_ in range(rounds):
        for c in (c for c in present if round_ < c.rounds):
            show(f"round {round_ + 1} of {rounds}: {c.key}")
            c.seconds[round_], out = take_turn(runs[id(c)])
            if round_ == 0 and out is not None:
                c.error = judge(c, out)


def take_turn(run: Run) -> tuple[float, np.ndarray | None]:
    """The least time of a call, and what the last call returned."""
    seconds: list[float] = []
    while sum(seconds) < LEAST:
        begin = time.perf_counter()
        out = run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds), out


def show(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


@dataclass
class Ratio:
    """The rate of `top` over the best of `bottom`, a pattern of keys; of several such pairs, the lowest ratio."""

    text: str
    target: float | None
    pairs: list[tuple[str, str]]

    def concerns(self, contenders: list[Contender]) -> bool:
        keys = [c.key for c in contenders]
        return all(top in keys and any(re.fullmatch(bottom, key) for key in keys) for top, bottom in self.pairs)

    def measure(self, contenders: list[Contender]) -> tuple[float, float] | None:
        """The ratio of least times, and the median ratio over rounds that both ran; None if a side did not run."""
        found = [measure_pair(contenders, *pair) for pair in self.pairs]
        if None in found:
            return None
        return min(of_minima for of_minima, _ in found), min(median for _, median in found)


def measure_pair(contenders: list[Contender], top: str, bottom: str) -> tuple[float, float] | None:
    ran = [c for c in contenders if c.seconds]
    tops = [c for c in ran if c.key == top]
    bottoms = [c for c in ran if re.fullmatch(bottom, c.key)]
    if not tops or not bottoms:
        return None
    mine, other = tops[0], max(bottoms, key=Contender.rate)
    both = sorted(mine.seconds.keys() & other.seconds.keys())
    return mine.rate() / other.rate(), statistics.median(mine.rate(r) / other.rate(r) for r in both)
