"""What run.py holds the measured rows to: the table of asked, measured and met."""

from collections.abc import Iterator
from dataclasses import dataclass

from llamacpp_measure import STOCK, Row


@dataclass(frozen=True)
class Judged:
    """A target. One of speed is only shown as missed, since the machine may be shared; one of correctness fails the run."""

    what: str
    asked: str
    measured: str
    is_met: bool
    is_speed: bool


@dataclass(frozen=True)
class Rows:
    rows: list[Row]

    def values(self, stage: str, case: str, length: int, configuration: str, metric: str) -> list[float]:
        key = stage, case, length, configuration, metric
        return [r.value for r in self.rows if (r.stage, r.case, r.length, r.configuration, r.metric) == key]

    def cases(self, stage: str) -> list[tuple[str, int]]:
        return list(dict.fromkeys((row.case, row.length) for row in self.rows if row.stage == stage))


def judged_ops(rows: Rows) -> Iterator[Judged]:
    for configuration, limit in (("exact", 1.0), ("force", 0.05)):
        n = [sum(rows.values("ops", "FLASH_ATTN_EXT", 0, configuration, name)) for name in ("ok", "failed", "refused")]
        if not sum(n):
            continue
        share = n[2] / sum(n)
        asked = "0 failed" + (f", at most {limit:.0%} refused" if limit < 1 else ", refused on purpose")
        measured = f"{n[0]:.0f} passed, {n[1]:.0f} failed, {n[2]:.0f} refused ({share:.1%})"
        yield Judged(f"test-backend-ops, {configuration}", asked, measured, n[0] > 0 == n[1] and share <= limit, False)


def judged_speed(rows: Rows, stage: str, asked: dict[tuple[int, str], float]) -> Iterator[Judged]:
    """Each length's fastest round over stock's."""
    for case, length in rows.cases(stage):
        stock = rows.values(stage, case, length, STOCK, "tokens_per_second")
        for configuration in ("exact", "default", "force"):
            values = rows.values(stage, case, length, configuration, "tokens_per_second")
            if not values or not stock:
                continue
            limit, ratio = asked.get((length, configuration)), max(values) / max(stock)
            measured = f"{ratio:.2f}x ({max(stock):.1f} to {max(values):.1f} tokens/s)"
            name = f"{stage}, {length} tokens, {case}, {configuration}"
            yield Judged(name, f"{limit:.1f}x" if limit else "", measured, not limit or ratio >= limit, True)


def most_perplexity(stage: str, case: str, configuration: str) -> float:
    """Of stage `losses`, one short window, what llama.cpp's own products round decides about three in a thousand."""
    if stage == "losses":
        return 1.01
    return 1.002 if configuration == "exact" or case.startswith("1 x") else 1.005


def judged_perplexity(rows: Rows, stage: str) -> Iterator[Judged]:
    for case, length in rows.cases(stage):
        stock = sum(rows.values(stage, case, length, STOCK, "perplexity"))
        for configuration in ("exact", "default"):
            value = sum(rows.values(stage, case, length, configuration, "perplexity"))
            if not value or not stock:
                continue
            limit = most_perplexity(stage, case, configuration)
            measured = f"{value / stock:.4f}x ({stock:.4f} to {value:.4f})"
            yield Judged(f"perplexity, {case}, {configuration}", f"at most {limit}x", measured, value <= limit * stock, False)


def judged_passkeys(rows: Rows) -> Iterator[Judged]:
    def loss(configuration: str) -> float:
        values = [row.value for row in rows.rows if (row.stage, row.configuration) == ("passkeys", configuration)]
        return sum(values) / len(values) if values else 0

    for configuration in ("exact", "default"):
        if loss(STOCK) and loss(configuration):
            ratio = loss(configuration) / loss(STOCK)
            measured = f"{ratio:.3f}x ({loss(STOCK):.3f} to {loss(configuration):.3f})"
            yield Judged(f"passkeys, loss per digit, {configuration}", "at most 1.02x", measured, ratio <= 1.02, False)


def judged_words(rows: Rows, stage: str) -> Iterator[Judged]:
    """exact must stay with llama.cpp without flash attention at least as long as llama.cpp's own flash attention does."""
    for case, _ in rows.cases(stage):
        stock = sum(rows.values(stage, case, 0, STOCK, "equal"))
        for configuration in ("exact", "default"):
            equal, all_of_it = (sum(rows.values(stage, case, 0, configuration, name)) for name in ("equal", "characters"))
            if not all_of_it:
                continue
            measured = f"{equal:.0f} of {all_of_it:.0f} characters (llama.cpp: {stock:.0f})"
            is_asked = configuration == "exact"
            asked = "as without flash attention, no less than llama.cpp" if is_asked else ""
            yield Judged(f"{stage}, greedy, {case}, {configuration}", asked, measured, equal >= stock or not is_asked, False)


def judged_batched(rows: Rows) -> Iterator[Judged]:
    seconds = [rows.values("batched", "time", 4096, configuration, "seconds") for configuration in (STOCK, "exact")]
    if all(seconds):
        stock, exact = map(min, seconds)
        measured = f"{stock / exact:.2f}x ({stock:.1f} s to {exact:.1f} s)"
        yield Judged("two sequences, unified cache, exact", "1.2x", measured, stock / exact >= 1.2, True)
    yield from judged_words(rows, "batched")


def judged_models(rows: Rows) -> Iterator[Judged]:
    for configuration in ("exact", "force"):
        names = [name for name, _ in rows.cases("models")]
        right = [sum(rows.values("models", name, 0, configuration, "is_right")) for name in names]
        worst = [max(rows.values("models", name, 0, configuration, "largest_difference"), default=0) for name in names]
        if right:
            measured = f"{sum(right):.0f} of {len(right)} ({', '.join(names)}); largest difference {max(worst):.1e}"
            yield Judged(f"models of random weights, {configuration}", "same logits and text", measured, all(right), False)


def judged_ways(rows: Rows) -> Iterator[Judged]:
    for name, _ in rows.cases("ways"):
        same, says = (sum(rows.values("ways", name, 0, "exact", metric)) for metric in ("same_text", "says"))
        measured = f"{'the same' if same else 'another'} text, {'told' if says else 'not told'}"
        yield Judged(f"way: {name}", "the same text, told", measured, bool(same and says), False)


def judge(measured: list[Row]) -> list[Judged]:
    """The targets of the stages that have been measured."""
    rows = Rows(measured)
    prefill = {(8000, "exact"): 1.8, (8000, "default"): 2.2, (16384, "exact"): 3.0, (16384, "default"): 6.0}
    little = {(length, "exact"): 1.0 for length in (0, 128, 256, 512, 1024)}
    decode = {(4096, "exact"): 1.0, (16384, "exact"): 1.3, (28672, "exact"): 1.6}
    return [
        *judged_ops(rows), *judged_models(rows), *judged_speed(rows, "prefill", prefill),
        *judged_speed(rows, "decode", decode), *judged_speed(rows, "little", little),
        *judged_perplexity(rows, "perplexity"), *judged_perplexity(rows, "losses"), *judged_passkeys(rows),
        *judged_batched(rows), *judged_words(rows, "text"), *judged_ways(rows),
    ]  # fmt: skip


def print_table(table: list[Judged]) -> None:
    print("\n| what | asked | measured | met |\n|---|---|---|---|")
    for row in table:
        met = "" if not row.asked else "met" if row.is_met else "missed" if row.is_speed else "FAILED"
        print(f"| {row.what} | {row.asked} | {row.measured} | {met} |")
