"""What run.py measures: each stage runs programs of llama.cpp with and without the backend and records rows.

A configuration is `stock` (without it) or a value of HYPERATTN_GGML. Those that are timed take turns in rounds.
"""

import json
import math
import os
import pathlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from llamacpp_build import Output, Places, StageFailed, run_program, say, show

ESSAY, OTHER = "opticks.txt", "persuasion.txt"
STOCK = "stock"
THREADS = "2"
# Programs that load what GGML_BACKEND_PATH names; the others of this version have to find the backend preloaded.
LOADS_BACKENDS = {"test-backend-ops", "llama-bench", "evaluate"}
CHARACTERS_PER_TOKEN = 4.3  # of the essay by SmolLM2's tokenizer
FIRST_DIGIT = 32  # SmolLM2's token of "0"; those of the other digits follow
OP_RESULT = re.compile(r"^  FLASH_ATTN_EXT\(.*\): .*?(OK|FAIL|not supported)")
SOME_OPS = r"hsk=(64|128|576),.*kv=(113|512),nb=(3|75),.*type_K=(f16|q8_0|q4_0)"


@dataclass(frozen=True)
class Row:
    """One number. `length` is in tokens, where there is such a thing."""

    stage: str
    case: str
    length: int
    configuration: str
    round: int
    metric: str
    value: float


@dataclass
class Bench:
    places: Places
    is_ci: bool
    rows: list[Row] = field(default_factory=list)

    @staticmethod
    def bare_environment() -> dict[str, str]:
        """Without the backend."""
        ours = "GGML_BACKEND_PATH", "LD_PRELOAD", "HYPERATTN_"
        return {name: value for name, value in os.environ.items() if not name.startswith(ours)}

    def environment(self, program: str, configuration: str) -> dict[str, str]:
        settings = self.bare_environment()
        if configuration == STOCK:
            return settings
        loader = "GGML_BACKEND_PATH" if program in LOADS_BACKENDS else "LD_PRELOAD"
        return {**settings, loader: str(self.places.backend), "HYPERATTN_GGML": configuration, "HYPERATTN_GGML_STATS": "1"}

    def run(
        self,
        stage: str,
        program: str,
        configuration: str,
        arguments: list[str],
        on_line: Callable[[str], None] = lambda line: None,
        may_fail: bool = False,
    ) -> Output:
        """Runs a program of llama.cpp; fails if the backend was to take part and has not told what it ran."""
        binary = self.places.program(program)
        if not binary.exists():
            raise StageFailed(f"{binary} is missing: the stage `build` makes it")
        log = self.places.folder / "logs" / f"{stage}-{program}-{configuration}.txt"
        environment = self.environment(program, configuration)
        output = run_program([str(binary), *arguments], environment, on_line, log, may_fail)
        if configuration != STOCK and not stats_of(output):
            raise StageFailed(f"{program} ran without the backend, which should have run as {configuration}; {log} may tell")
        return output

    def run_model(self, stage: str, program: str, configuration: str, arguments: list[str]) -> Output:
        return self.run(stage, program, configuration, ["-m", str(self.places.model), "-t", THREADS, *arguments])

    def record(self, stage: str, case: str, length: int, configuration: str, turn: int, **metrics: float) -> None:
        self.rows += [Row(stage, case, length, configuration, turn, name, float(value)) for name, value in metrics.items()]

    def write(self, name: str, text: str) -> pathlib.Path:
        """A text for programs to read."""
        path = self.places.folder / name
        path.write_text(text, encoding="utf-8")
        return path


def stats_of(output: Output) -> list[str]:
    """What the backend says at exit, because of HYPERATTN_GGML_STATS; a program's own log may begin the line."""
    return re.findall(r"hyperattn: .*\d.*", output.errors)


def find(pattern: str, output: Output) -> tuple[str, ...]:
    """The groups of a pattern in what a program wrote."""
    found = re.search(pattern, output.text + output.errors)
    if not found:
        raise StageFailed(f"a program did not write what matches {pattern}")
    return found.groups()


def in_turns(rounds: int, configurations: list[str], what: str) -> Iterator[tuple[int, str]]:
    """(round, configuration), where every configuration has its turn in each round."""
    for turn in range(rounds):
        for configuration in configurations:
            show(f"{what}: round {turn + 1} of {rounds}, {configuration}")
            yield turn, configuration


def text_of(bench: Bench, n_tokens: int) -> str:
    """About that many tokens of the essay, the other text and the essay again, to the end of a word."""
    text = bench.places.text(ESSAY) + bench.places.text(OTHER) + bench.places.text(ESSAY)
    return text[: round(n_tokens * CHARACTERS_PER_TOKEN)].rsplit(maxsplit=1)[0]


# ---- Correctness of the operation ----------------------------------------------------------------------------


def measure_ops(bench: Bench) -> None:
    """llama.cpp's own tests of FLASH_ATTN_EXT, which compare with its CPU backend: all where nothing is refused for speed."""
    for configuration in ("exact", "force"):
        counts: Counter[str] = Counter()

        def count(line: str) -> None:
            found = OP_RESULT.match(line)
            if found:
                counts[found[1]] += 1
                show(f"ops {configuration}: {counts.total()} cases, {counts['FAIL']} failed")

        is_part = bench.is_ci or configuration == "exact"
        arguments = ["test", "-o", "FLASH_ATTN_EXT", "-b", "HYPERATTN", *(["-p", SOME_OPS] if is_part else [])]
        output = bench.run("ops", "test-backend-ops", configuration, arguments, count, may_fail=True)
        if not re.search(r"\d+/\d+ tests passed", output.text):
            raise StageFailed(f"test-backend-ops broke off after {counts.total()} cases as {configuration}")
        bench.record("ops", "FLASH_ATTN_EXT", 0, configuration, 0, ok=counts["OK"], failed=counts["FAIL"],
                     refused=counts["not supported"])  # fmt: skip
        for line in stats_of(output):
            say(f"  {line}")


# ---- Speed ---------------------------------------------------------------------------------------------------


def llama_bench(bench: Bench, stage: str, configuration: str, arguments: list[str]) -> float:
    """Tokens a second."""
    arguments = [*arguments, "-fa", "1", "-r", "1", "-o", "jsonl"]
    return float(json.loads(bench.run_model(stage, "llama-bench", configuration, arguments).text)["avg_ts"])


def measure_prefill(bench: Bench) -> None:
    """llama-bench on prompts of random tokens. It makes a context as long as asked, also beyond the model's own."""
    for length, ubatch, rounds in ((2048, 2048, 2), (8000, 2048, 2), (16384, 4096, 2)):
        arguments = ["-p", str(length), "-n", "0", "-ub", str(ubatch), "-b", str(ubatch), "--no-warmup"]
        for turn, configuration in in_turns(rounds, [STOCK, "exact", "default"], f"prefill of {length}"):
            speed = llama_bench(bench, "prefill", configuration, arguments)
            bench.record("prefill", f"ubatch {ubatch}", length, configuration, turn, tokens_per_second=speed)


def fill_cache(bench: Bench, length: int) -> list[str]:
    """llama-completion's arguments to go on after `length` tokens; their keys and values are in a file."""
    prompt = bench.write(f"decode-{length}.txt", text_of(bench, length))
    cache = bench.places.folder / f"decode-{length}.cache"
    arguments = ["-f", str(prompt), "-c", str(length * 9 // 8 + 512), "--prompt-cache", str(cache), "-fa", "on", "-no-cnv"]
    arguments += ["--ignore-eos", "--temp", "0", "--no-display-prompt"]
    if not cache.exists():
        show(f"decode: prefill of {length} tokens")
        bench.run_model("decode", "llama-completion", "default", [*arguments, "-n", "1", "-ub", "4096", "-b", "4096"])
    return [*arguments, "--prompt-cache-ro"]


def measure_decode(bench: Bench) -> None:
    """Steps of llama-completion after a long prompt, which is prefilled once and kept in a file for all configurations.

    `llama-bench -d` would prefill in each round and configuration, a quarter of an hour for the longest one.
    """
    for length in (4096, 16384, 28672):
        arguments = fill_cache(bench, length)
        for turn, configuration in in_turns(4, [STOCK, "exact"], f"decode after {length}"):
            output = bench.run_model("decode", "llama-completion", configuration, [*arguments, "-n", "32"])
            milliseconds, steps = find(r" eval time = +([\d.]+) ms / +(\d+) runs", output)
            speed = 1000 * int(steps) / float(milliseconds)
            bench.record("decode", "f16 cache", length, configuration, turn, tokens_per_second=speed)


def measure_little(bench: Bench) -> None:
    """Decoding after few tokens, where a graph of its own for each attention costs as much as that saves (attention.c)."""
    for turn, configuration in in_turns(5, [STOCK, "exact", "force"], "decode after few tokens"):
        for length in (0, 128, 256, 512, 1024):
            speed = llama_bench(bench, "little", configuration, ["-p", "0", "-n", "64", "-d", str(length)])
            bench.record("little", "f16 cache", length, configuration, turn, tokens_per_second=speed)


# ---- What the model makes of it ------------------------------------------------------------------------------


def perplexity(bench: Bench, configuration: str, text: pathlib.Path, window: int, chunks: int, cache: str) -> None:
    show(f"perplexity: {chunks} x {window}, {cache} cache, {configuration}")
    ubatch = str(min(window, 4096))
    arguments = ["-f", str(text), "-c", str(window), "-b", str(window), "-ub", ubatch, "--chunks", str(chunks), "-fa", "on"]
    output = bench.run_model("perplexity", "llama-perplexity", configuration, [*arguments, "-ctk", cache, "-ctv", cache])
    figure = float(find(r"Final estimate: PPL = ([\d.]+)", output)[0])
    bench.record("perplexity", f"{chunks} x {window}, {cache}", window, configuration, 0, perplexity=figure)


def measure_perplexity(bench: Bench) -> None:
    """llama-perplexity wants two windows of text even where it reads one, hence both texts; the first is the essay's."""
    text = bench.write("perplexity.txt", bench.places.text(ESSAY) + bench.places.text(OTHER))
    for window, chunks, cache in ((8192, 1, "f16"), (2048, 4, "f16"), (2048, 4, "q8_0")):
        for configuration in (STOCK, "exact", "default"):
            perplexity(bench, configuration, text, window, chunks, cache)


def losses_of(bench: Bench, stage: str, configuration: str, text: pathlib.Path, ubatch: str) -> list[tuple[int, float]]:
    """Each token of a text after the first, and its loss."""
    losses = text.with_suffix(f".{configuration}.losses")
    arguments = [str(bench.places.model), "--text", str(text), "--losses", str(losses), "--ubatch", ubatch]
    bench.run(stage, "evaluate", configuration, [*arguments, "--threads", THREADS])
    return [(int(token), float(loss)) for _, token, loss in map(str.split, losses.read_text().splitlines())]


def measure_losses(bench: Bench) -> None:
    """The perplexity of 2048 tokens by `evaluate` alone, for which less of llama.cpp has to be built."""
    text = bench.write("losses.txt", text_of(bench, 2048))
    for configuration in (STOCK, "exact", "default"):
        losses = losses_of(bench, "losses", configuration, text, "2048")
        figure = math.exp(sum(loss for _, loss in losses) / len(losses))
        bench.record("losses", "1 x 2048 by evaluate, f16", 2048, configuration, 0, perplexity=figure)


HAYSTACKS = [(ESSAY, slice(33800)), (ESSAY, slice(-34800, None)), (OTHER, slice(35900))]  # nearly 8192 tokens with all else
LANDMARKS = ["lighthouse", "orchard", "harbour", "windmill", "chapel", "garden"]
HIDDEN = "The secret number of the {place} is {code}. "
ASKED = "Question: What is the secret number of the {place}? Answer: The secret number of the {place} is {code}.\n"


def passkey_text(haystack: str, seed: int) -> tuple[str, str]:
    """The text with a sentence for each place hidden in it and asked for at its end, and the digits asked for."""
    chance = random.Random(seed)
    codes = {place: str(chance.randrange(10000, 100000)) for place in LANDMARKS}
    text, end = "", 0
    for i, place in enumerate(LANDMARKS):
        at = haystack.index(". ", round(len(haystack) * (i + 0.5) / len(LANDMARKS))) + 2
        text += haystack[end:at] + HIDDEN.format(place=place, code=codes[place])
        end = at
    asked = chance.sample(LANDMARKS, len(LANDMARKS))
    text += haystack[end:] + "\n\n" + "".join(ASKED.format(place=place, code=codes[place]) for place in asked)
    return text, "".join(codes[place] for place in asked)


def digit_loss(losses: list[tuple[int, float]], digits: str) -> float:
    """Mean loss of the last digits of a text, which must be those given."""
    last = [(token - FIRST_DIGIT, loss) for token, loss in losses if 0 <= token - FIRST_DIGIT <= 9][-len(digits) :]
    if "".join(str(digit) for digit, _ in last) != digits:
        raise StageFailed("the model's tokens of digits are not those this expects")
    return sum(loss for _, loss in last) / len(last)


def measure_passkeys(bench: Bench) -> None:
    """Loss per digit of six codes that 8192 tokens of text hide; chance is 2.30."""
    for seed, (name, part) in enumerate(HAYSTACKS):
        text, digits = passkey_text(bench.places.text(name)[part], seed)
        path = bench.write(f"passkeys-{seed}.txt", text)
        for configuration in (STOCK, "exact", "default"):
            show(f"passkeys: text {seed + 1} of {len(HAYSTACKS)}, {configuration}")
            loss = digit_loss(losses_of(bench, "passkeys", configuration, path, "4096"), digits)
            bench.record("passkeys", f"text {seed}", 8192, configuration, 0, loss_per_digit=loss)


# ---- The same words ------------------------------------------------------------------------------------------


def repeating_prompt(bench: Bench, n_tokens: int) -> str:
    """A passage eight times, and its beginning: what follows is sure, by a lead of 2 in logits, if attention finds it.

    After text that is less sure, the error of stock's own attention decides between the likeliest tokens.
    """
    passage = text_of(bench, n_tokens // 9)
    return "\n\n".join([passage] * 8 + [passage[: len(passage) // 2].rsplit(maxsplit=1)[0]])


# (flash attention, configuration): the first is what the others are compared with. llama.cpp's own flash attention errs
# when it decodes, since it rounds queries to f16, so that it may part from this where two tokens are nearly as likely.
SPEAKERS = [("off", STOCK), ("auto", STOCK), ("auto", "exact")]


def record_words(bench: Bench, stage: str, case: str, flash: str, configuration: str, pairs: list[tuple[str, str]]) -> None:
    """How many characters there are, and how many are the same before the first that differs."""
    if flash != "off":
        equal = sum(len(os.path.commonprefix(pair)) for pair in pairs)
        bench.record(stage, case, 0, configuration, 0, characters=sum(len(first) for first, _ in pairs), equal=equal)


def measure_text(bench: Bench) -> None:
    """What llama-completion goes on with, greedily and with `-fa auto`, which must not turn flash attention off."""
    prompt = bench.write("text.txt", repeating_prompt(bench, 3000))
    arguments = ["-f", str(prompt), "-c", "4096", "-b", "4096", "-ub", "4096", "-n", "64", "--temp", "0", "--seed", "1"]
    arguments += ["-no-cnv", "--no-display-prompt"]
    reference = ""
    plan = [("f32", *speaker) for speaker in SPEAKERS] + [("f16", "auto", name) for name in (STOCK, "exact", "default")]
    for cache, flash, configuration in plan:
        show(f"text: {cache} cache, {configuration}, flash attention {flash}")
        more = ["-ctk", cache, "-ctv", cache, "-fa", flash]
        said = bench.run_model("text", "llama-completion", configuration, [*arguments, *more]).text
        reference = reference or said
        record_words(bench, "text", f"{cache} cache", flash, configuration, [(reference, said)])


def two_sequences(bench: Bench, flash: str, configuration: str) -> list[str]:
    """What llama-batched goes on with, greedily, for two sequences that share a prompt and a unified cache."""
    text = repeating_prompt(bench, 2000)
    prompt = bench.write("batched.txt", text)
    show(f"batched: the tokens of two sequences, {configuration}, flash attention {flash}")
    arguments = ["-f", str(prompt), "-np", "2", "-kvu", "-n", "2130", "-ub", "2048", "--temp", "0", "-fa", flash]
    output = bench.run_model("batched", "llama-batched", configuration, [*arguments, "-ctk", "f32", "-ctv", "f32"])
    said = [part.split("\n\nsequence 1:")[0].strip() for part in output.text.split(text)[-2:]]
    if len(said) != 2 or not all(said):
        raise StageFailed("llama-batched did not write two sequences")
    return said


def measure_batched(bench: Bench) -> None:
    """Two sequences of one prompt in a unified cache: the time of llama-batched-bench, and llama-batched's tokens."""
    arguments = ["-c", "4608", "-b", "2048", "-ub", "2048", "-npp", "4096", "-ntg", "32", "-npl", "2", "-kvu", "-pps"]
    arguments += ["-fa", "on", "--output-format", "jsonl"]
    for turn, configuration in in_turns(2, [STOCK, "exact"], "batched"):
        output = bench.run_model("batched", "llama-batched-bench", configuration, arguments)
        seconds = float(find(r'"t": ([\d.]+)', output)[0])
        bench.record("batched", "time", 4096, configuration, turn, seconds=seconds)
    reference: list[str] = []
    for flash, configuration in SPEAKERS:
        said = two_sequences(bench, flash, configuration)
        reference = reference or said
        record_words(bench, "batched", "two sequences, f32 cache", flash, configuration, list(zip(reference, said)))


# ---- Every kind of attention -----------------------------------------------------------------------------------


def measure_models(bench: Bench) -> None:
    """Models of random weights, one for each kind of attention: random_models.py makes and same_models.py compares them."""
    here, models = pathlib.Path(__file__).parent, bench.places.folder / "models"
    python, log = str(bench.places.python), bench.places.folder / "logs" / "models.txt"
    show("models: made")
    run_program([python, str(here / "random_models.py"), str(models)])
    call = [python, str(here / "same_models.py"), "--evaluate", str(bench.places.evaluate)]
    call += ["--backend", str(bench.places.backend), "--models", str(models)]
    output = run_program(call, bench.bare_environment(), lambda line: show(f"models: {line[:40]}"), log, may_fail=True)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.text.splitlines()[2:]]
    if not rows:
        raise StageFailed(f"same_models.py broke off; {log} tells")
    for name, _, mode, difference, *_, verdict in rows:
        bench.record("models", name, 0, mode, 0, largest_difference=float(difference), is_right=verdict == "same")


STAGES: dict[str, Callable[[Bench], None]] = {
    "ops": measure_ops, "models": measure_models, "prefill": measure_prefill, "decode": measure_decode, "little": measure_little,
    "perplexity": measure_perplexity, "passkeys": measure_passkeys, "batched": measure_batched, "text": measure_text,
}  # fmt: skip
CI_STAGES = ["ops", "models", "losses", "ways"]
