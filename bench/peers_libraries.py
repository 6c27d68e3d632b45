"""What peers.sh built or installed, as functions to time. What is missing raises Absent with the reason."""

import ctypes
import functools
import importlib.metadata
import os
import pathlib
import re
import shutil

import numpy as np

import peers_data
from peers_contest import Absent, Run

LIBRARIES = pathlib.Path(__file__).parent.parent / "build" / "peers" / "lib"
CORES = {
    "SKYLAKEX": "avx512f",
    "COOPERLAKE": "avx512_bf16",
    "SAPPHIRERAPIDS": "amx_bf16",
    "ZEN": "avx2",
    "HASWELL": "avx2",
}


def cpu(field: str) -> str:
    found = re.search(rf"^{field}\s*:\s*(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else ""


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def pointer(x: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.ctypes.data)


@functools.cache
def peer(name: str) -> ctypes.CDLL:
    """A library with the three functions of peers_library.c."""
    path = LIBRARIES / f"{name}.so"
    if not path.exists():
        raise Absent(f"{name} was not built")
    library = ctypes.CDLL(str(path))
    library.peer_open.restype = ctypes.c_void_p
    library.peer_version.restype = ctypes.c_char_p
    return library


def peer_version(name: str) -> str:
    try:
        return peer(name).peer_version().decode().strip()
    except Absent:
        return f"{name} absent"


def peer_attention(name: str, kind: str, mask: str, n: int, dim: int, threads: int, dtype: str = "f32") -> Run:
    library = peer(name)
    out = np.empty((n, dim), np.float32)
    opened = library.peer_open(
        kind.encode(),
        dtype.encode(),
        threads,
        int(mask == "causal"),
        ctypes.c_int64(n),
        ctypes.c_int64(dim),
        *map(pointer, peers_data.tensors(n, dim)),
        pointer(out),
    )
    if not opened:
        raise Absent(f"{name} has no {kind} of {dtype} on this machine")
    handle = ctypes.c_void_p(opened)

    def run() -> np.ndarray:
        if not library.peer_run(handle):
            raise RuntimeError(f"{name} {kind} failed")
        return out

    return run


def sgemm(core: str, n: int) -> Run:
    """OpenBLAS reads its core type once, as it is loaded: copies of the library let one process hold them all."""
    if CORES[core] not in cpu("flags").split():
        raise Absent("not for this CPU")
    try:
        import scipy_openblas32
    except ImportError:
        raise Absent("scipy-openblas32 is not installed") from None
    original = next(pathlib.Path(scipy_openblas32.get_lib_dir()).glob("libscipy_openblas.*"))
    os.environ["OPENBLAS_CORETYPE"] = core
    library = ctypes.CDLL(shutil.copy(original, LIBRARIES / f"openblas-{core}.so"))
    library.scipy_openblas_get_corename.restype = ctypes.c_char_p
    taken = library.scipy_openblas_get_corename().decode()
    if taken.upper() != core:
        raise Absent(f"this OpenBLAS takes {taken} instead")
    library.scipy_openblas_set_num_threads(1)
    rng = np.random.default_rng(1)
    a, b = (rng.random((n, n), np.float32) for _ in range(2))
    c = np.empty_like(a)
    row_major, not_transposed, one, zero = 101, 111, ctypes.c_float(1), ctypes.c_float(0)

    def run() -> None:
        library.scipy_cblas_sgemm(
            row_major, not_transposed, not_transposed, n, n, n, one, pointer(a), n, pointer(b), n, zero, pointer(c), n
        )

    return run


def torch_attention(kind: str, mask: str, n: int, dim: int = peers_data.HEAD_DIM, dtype: str = "float32") -> Run:
    """kind: "sdpa", or one of authors.ATTEND."""
    try:
        import torch
    except ImportError:
        raise Absent("torch is not installed") from None
    import authors

    torch.set_num_threads(1)
    torch.manual_seed(0)
    q, k, v = (torch.from_numpy(x)[None, None].to(getattr(torch, dtype)) for x in peers_data.tensors(n, dim))
    causal = mask == "causal"
    if kind == "sdpa":
        sdpa = torch.nn.functional.scaled_dot_product_attention
        return lambda: sdpa(q, k, v, is_causal=causal)[0, 0].float().numpy()
    return lambda: authors.attention(q, k, v, causal, authors.ATTEND[kind])[0, 0].numpy()
