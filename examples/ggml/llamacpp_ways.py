"""Each way to turn the backend on, and what becomes of a program where it does not fit: a stage of run.py.

A build of an older release whose backends are libraries, and one of this release with the backend inside libllama and
without OpenMP, are made for it. A way is right if the model goes on with the same tokens as without the backend, and the
backend tells that it ran; where it does not fit, if it says so in one line.
"""

import dataclasses
import pathlib
import re
import shutil

from llamacpp_build import Places, build_beside, build_programs, fetch_source, pip, run_program, show
from llamacpp_measure import THREADS, Bench, repeating_prompt

OLDER = "0.3.18"  # of early 2026: ggml 0.9.8, whose structures of a backend are laid out otherwise
PYTHON_PACKAGES = ["diskcache", "jinja2", "typing-extensions"]  # what llama_cpp imports
N_GREEDY = "24"

PYTHON_PROGRAM = """
import os, sys
import hyperattn_llama, llama_cpp
library, model, text = sys.argv[1:]
if "HYPERATTN_GGML_STATS" in os.environ:
    print(hyperattn_llama.enable(library, method="exact"), file=sys.stderr)
llama = llama_cpp.Llama(model, n_ctx=2048, n_threads={threads}, flash_attn=True, verbose=False)
print(*llama.create_completion(open(text).read(), max_tokens={n}, temperature=0)["choices"][0]["text"].split())
"""


@dataclasses.dataclass(frozen=True)
class Way:
    """A program, the environment that turns the backend on, the one that does not, and what stderr must have."""

    name: str
    call: list[str]
    on: dict[str, str]
    off: dict[str, str] = dataclasses.field(default_factory=dict)
    says: str = r"hyperattn: .* [1-9]\d* operations"


def build_older(places: Places) -> pathlib.Path:
    """The older release with backends as libraries; returns its `evaluate`."""
    source, build = places.folder / f"llama.cpp-{OLDER}", places.folder / f"llama.cpp-{OLDER}-build"
    fetch_source(places, OLDER, source)
    native = ["-DGGML_BACKEND_DL=ON", "-DGGML_NATIVE=OFF", "-DCMAKE_C_FLAGS=-march=native", "-DCMAKE_CXX_FLAGS=-march=native"]
    build_programs(places, source, build, ["llama", "ggml-cpu"], native)
    to = places.folder / "evaluate-older"
    build_beside(places, source, build, to, "evaluate")
    return pathlib.Path(shutil.copy(to / "evaluate", build / "bin"))  # a program finds backends that lie beside it


def build_in_tree(places: Places) -> pathlib.Path:
    build = places.folder / "llama.cpp-in-tree"
    include = places.repository / "examples" / "ggml" / "in-tree.cmake"
    options = [f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={include}", "-DGGML_OPENMP=OFF"]
    build_programs(places, places.source, build, ["llama"], options)
    to = places.folder / "evaluate-in-tree"
    build_beside(places, places.source, build, to, "evaluate")
    return to / "evaluate"


def make_other_ggml(places: Places) -> pathlib.Path:
    """A folder with a ggml in which the operation has another name, as if its meaning had changed."""
    folder = places.folder / "other-ggml"
    folder.mkdir(exist_ok=True)
    for library in (places.build / "bin").glob("libggml-base.so.?"):
        (folder / library.name).write_bytes(library.read_bytes().replace(b"\0FLASH_ATTN_EXT\0", b"\0FLASH_ATTN_NEW\0"))
    return folder


def python_way(bench: Bench, text: pathlib.Path) -> Way:
    places = bench.places
    pip(places, "install", *PYTHON_PACKAGES)
    program = bench.write("ways.py", PYTHON_PROGRAM.format(threads=THREADS, n=N_GREEDY))
    path = f"{places.repository / 'examples' / 'ggml'}:{places.source / 'python'}"
    environment = {"LLAMA_CPP_LIB_PATH": str(places.build / "bin"), "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    call = [str(places.python), str(program), str(places.backend), str(places.model), str(text)]
    return Way("hyperattn_llama in Python", call, environment | {"HYPERATTN_GGML_STATS": "1"}, environment)


def ways_of(bench: Bench) -> list[Way]:
    places = bench.places
    text = bench.write("ways.txt", repeating_prompt(bench, 900))
    arguments = [str(places.model), "--text", str(text), "--cache", "f32", "--threads", THREADS, "--greedy", N_GREEDY]
    here = [str(places.evaluate), *arguments]
    path, preload = {"GGML_BACKEND_PATH": str(places.backend)}, {"LD_PRELOAD": str(places.backend)}
    stats = {"HYPERATTN_GGML_STATS": "1"}
    ways = [
        Way("GGML_BACKEND_PATH", here, path | stats),
        Way("LD_PRELOAD", here, preload | stats),
        Way("-fa auto", [*here, "--flash-attn", "auto"], path | stats),
        Way("a variable with no such value", here, path | {"HYPERATTN_GGML": "no"},
            says="hyperattn: not used: HYPERATTN_GGML is"),
        Way("another ggml", here, path | {"LD_LIBRARY_PATH": str(make_other_ggml(places))},
            says="hyperattn: not used: its tensors or its attention"),
        Way("a program without ggml", ["echo", "1"], preload, says="^$"),
    ]  # fmt: skip
    if not bench.is_ci:
        older, in_tree = str(build_older(places)), str(build_in_tree(places))
        ways += [
            Way(f"GGML_BACKEND_DL, release {OLDER}", [older, *arguments], path | stats),
            Way("in-tree, without OpenMP", [in_tree, *arguments], stats, {"HYPERATTN_GGML": "off"}),
            python_way(bench, text),
        ]
    return ways


def measure_ways(bench: Bench) -> None:
    for way in ways_of(bench):
        show(f"ways: {way.name}")
        without = run_program(way.call, bench.bare_environment() | way.off)
        log = bench.places.folder / "logs" / f"ways-{way.name.replace(' ', '-')}.txt"
        turned_on = run_program(way.call, bench.bare_environment() | way.on, log=log)
        is_same = turned_on.text == without.text and bool(turned_on.text.strip())
        says = bool(re.search(way.says, turned_on.errors, re.MULTILINE))
        bench.record("ways", way.name, 0, "exact", 0, same_text=is_same, says=says)
