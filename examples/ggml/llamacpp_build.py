"""Fetches llama.cpp, the model and the texts, builds llama.cpp's programs and the backend: the first stages of run.py.

llama.cpp's source comes inside the source package of llama-cpp-python. What a folder already has is not made again.
"""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import types
import venv
from collections.abc import Callable
from dataclasses import dataclass

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
VENV_PACKAGES = ["numpy", "matplotlib", "gguf", "scikit-build-core"]
PROGRAMS = [
    "llama", "llama-bench", "llama-perplexity", "llama-batched-bench", "llama-batched", "llama-completion",
]  # fmt: skip
# llama-batched, which prints what several sequences go on with, is one of the examples; no other example is built.
OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_BUILD_EXAMPLES=ON", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_CURL=OFF",
    "-DGGML_CCACHE=OFF",
]  # fmt: skip


class StageFailed(Exception):
    """A stage that cannot go on, with a sentence that says why."""


@dataclass(frozen=True)
class Places:
    """Where things are: `repository` is this project's, all else is made in `folder`."""

    repository: pathlib.Path
    folder: pathlib.Path
    backend: pathlib.Path

    @property
    def python(self) -> pathlib.Path:
        return self.folder / "venv" / "bin" / "python"

    @property
    def source(self) -> pathlib.Path:
        return self.folder / "llama.cpp"

    @property
    def build(self) -> pathlib.Path:
        return self.folder / "llama.cpp-build"

    @property
    def evaluate(self) -> pathlib.Path:
        return self.folder / "backend" / "evaluate"

    @property
    def model(self) -> pathlib.Path:
        found = sorted(self.folder.glob("*.gguf"))
        if not found:
            raise StageFailed("there is no model: the stage `fetch` gets it")
        return found[0]

    def program(self, name: str) -> pathlib.Path:
        """Those that are built beside the backend, of this project's sources or of llama.cpp's tests, and llama.cpp's own."""
        return self.evaluate.with_name(name) if name in ("evaluate", "test-backend-ops") else self.build / "bin" / name

    def text(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")


def say(text: str) -> None:
    show("")
    print(text, flush=True)


def show(text: str) -> None:
    """On a terminal, what goes on right now; an empty text takes it away."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:110]}", end="", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Output:
    text: str
    errors: str
    code: int


def run_program(
    call: list[str],
    environment: dict[str, str] | None = None,
    on_line: Callable[[str], None] = lambda line: None,
    log: pathlib.Path | None = None,
    may_fail: bool = False,
) -> Output:
    """Runs a program to its end, gives each line of its standard output to `on_line` and all it wrote to `log`."""
    lines = []
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            call, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
            errors="replace",
        )  # fmt: skip
        for line in process.stdout:
            lines.append(line)
            on_line(line)
        code = process.wait()
        errors.seek(0)
        output = Output("".join(lines), errors.read(), code)
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"{' '.join(call)}\n\n{output.text}\n{output.errors}", encoding="utf-8")
    if code and not may_fail:
        last = "\n".join((output.errors or output.text).splitlines()[-5:])
        raise StageFailed(f"{pathlib.Path(call[0]).name} failed with {code}:\n{last}")
    return output


def llm_module(places: Places) -> types.ModuleType:
    """examples/llm/run.py, which knows where the model and the texts come from."""
    path = places.repository / "examples" / "llm" / "run.py"
    spec = importlib.util.spec_from_file_location("llm_run", path)
    if not spec or not spec.loader or not path.exists():
        raise StageFailed(f"{path} is missing: is --source this project's folder?")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pip(places: Places, *arguments: str) -> None:
    call = [str(places.python), "-m", "pip", *arguments, "-q", "--disable-pip-version-check"]
    if run_program(call, log=places.folder / "logs" / f"pip-{arguments[0]}.txt", may_fail=True).code:
        raise StageFailed(f"`pip {' '.join(arguments)}` failed (offline?); logs/pip-{arguments[0]}.txt tells")


def make_venv(places: Places) -> None:
    """numpy and gguf for the scripts about models, matplotlib for the plot, scikit-build-core for fetch_source."""
    if not places.python.exists():
        show("making a virtual environment")
        venv.create(places.folder / "venv", with_pip=True)
        pip(places, "install", *VENV_PACKAGES)


def fetch_source(places: Places, version: str, to: pathlib.Path) -> None:
    """llama.cpp of a release of llama-cpp-python, and into to/python that package itself.

    pip looks into a source package before it hands it over; without isolation it needs no build environment for that.
    """
    if to.exists():
        return
    show(f"fetching llama.cpp of {PACKAGE} {version} (75 MB)")
    pip(places, "download", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "-d", str(places.folder),
        f"{PACKAGE}=={version}")  # fmt: skip
    name = f"{PACKAGE.replace('-', '_')}-{version}"
    folders = {f"{name}/vendor/llama.cpp/": "", f"{name}/llama_cpp/": "python/llama_cpp/"}
    part = to.with_name(f"{to.name}.part")
    with tarfile.open(places.folder / f"{name}.tar.gz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.10 may not have it
        for member in archive:
            inner = next((inner for inner in folders if member.name.startswith(inner)), None)
            if inner:
                member.name = folders[inner] + member.name.removeprefix(inner)
                archive.extract(member, part)
    (part / "ggml" / "ggml.pc.in").touch()  # the package leaves it out, and CMake reads it
    part.rename(to)
    (places.folder / f"{name}.tar.gz").unlink()


def fetch(places: Places) -> None:
    llm = llm_module(places)
    make_venv(places)
    fetch_source(places, VERSION, places.source)
    if not llm.fetch_model(places.folder):
        raise StageFailed("the model cannot be had")
    llm.unpack_texts(places.folder)


def cmake(places: Places, name: str, *arguments: str) -> None:
    def on_line(line: str) -> None:
        percent = re.match(r"\[ *\d+%\]", line)
        if percent:
            show(f"{name} {percent[0]}")

    run_program(["cmake", *arguments], on_line=on_line, log=places.folder / "logs" / f"{name}.txt")


def build_programs(
    places: Places, source: pathlib.Path, to: pathlib.Path, targets: list[str], options: list[str] | None = None
) -> None:
    """Targets of llama.cpp, unless that was done before."""
    done = to / "done"
    if done.exists() and set(targets) <= set(done.read_text().split()):
        return
    cmake(places, f"configure-{to.name}", "-S", str(source), "-B", str(to), *OPTIONS, *(options or []))
    cmake(places, f"build-{to.name}", "--build", str(to), "-j", str(os.cpu_count() or 1), "--target", *targets)
    done.write_text(" ".join(targets))


def build_beside(places: Places, source: pathlib.Path, build: pathlib.Path, to: pathlib.Path, *targets: str) -> None:
    """Targets of examples/ggml, against a build of llama.cpp."""
    cmake(places, f"configure-{to.name}", "-S", str(places.repository / "examples" / "ggml"), "-B", str(to),
          f"-DLLAMA_CPP_SOURCE={source}", f"-DLLAMA_CPP_BUILD={build}")  # fmt: skip
    cmake(places, f"build-{to.name}", "--build", str(to), "-j", str(os.cpu_count() or 1), "--target", *targets)


def build(places: Places, is_backend_given: bool, is_ci: bool) -> None:
    build_programs(places, places.source, places.build, PROGRAMS[:1] if is_ci else PROGRAMS)
    if not is_backend_given:
        build_beside(places, places.source, places.build, places.folder / "backend", "all", "test-backend-ops")
