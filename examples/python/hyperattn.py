"""Attention on the CPU by hyperattn.h, for numpy arrays: this one file, over ctypes and the shared library.

    cmake -S . -B build/shared -DHYPERATTN_SHARED=ON && cmake --build build/shared --target hyperattn_shared

makes the library. It is looked for where HYPERATTN_LIBRARY says, beside this file, in the build folders of
the source tree that this file is in, and among the system's libraries; load(path) names it instead.

    out = hyperattn.attention(query, key, value, causal=True)  # approximated where that pays
    out, lse = hyperattn.attention(query, key, value, method="exact", mask=may_attend, lse=True)
"""

import concurrent.futures
import ctypes
import ctypes.util
import functools
import os
import pathlib
import sys
from ctypes import c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_ssize_t, c_uint64, c_void_p

import numpy as np

BUILD = (
    "cmake -S . -B build/shared -DHYPERATTN_SHARED=ON && "
    "cmake --build build/shared --target hyperattn_shared"
)
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}  # numpy has no bfloat16; that of ml_dtypes has this name
HYPER, EXACT, SCAN = 0, 1, 2

# ---- The structures of the header, field by field ----


class Input(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int),
        ("batch_stride", c_ssize_t),
        ("head_stride", c_ssize_t),
        ("row_stride", c_ssize_t),
        ("widen", c_void_p),
        ("page", c_void_p),
        ("page_rows", c_int64),
        ("page_stride", c_ssize_t),
        ("page_batch_stride", c_ssize_t),
    ]


class Output(ctypes.Structure):
    _fields_ = Input._fields_[:5]


class Problem(ctypes.Structure):
    _fields_ = [
        ("batch", c_int64),
        ("n_heads", c_int64),
        ("n_kv_heads", c_int64),
        ("n_query", c_int64),
        ("n_key", c_int64),
        ("head_dim", c_int64),
        ("value_dim", c_int64),
        ("causal", c_int),
        ("scale", c_float),
        ("query", Input),
        ("key", Input),
        ("value", Input),
        ("out", Output),
        ("lse", c_void_p),
        ("softcap", c_float),
        ("sliding_window", c_int64),
        ("mask", Input),
        ("mask_slope", c_void_p),
        ("sink", c_void_p),
        ("report", c_void_p),
        ("query_error", c_void_p),
        ("index", c_void_p),
    ]


class Params(ctypes.Structure):
    _fields_ = [
        ("method", c_int),
        ("min_seq_len", c_int64),
        ("block_size", c_int64),
        ("sample_size", c_int64),
        ("lsh_bits", c_int32),
        ("query_group", c_int64),
        ("key_group", c_int64),
        ("order", c_int),
        ("sink_keys", c_int64),
        ("heavy_keys", c_int64),
        ("probe_queries", c_int64),
        ("window", c_int64),
        ("sampling", c_int),
        ("tolerance", c_float),
        ("cap_epsilon", c_float),
        ("cap_kappa", c_float),
        ("seed", c_uint64),
        ("isa", c_int),
    ]


REPORTED = (
    "error max_error escalated exact keys_per_query "
    "block_mass pinned_mass sampled_mass window_mass alpha kappa "
    "error_median error_99 error_999 doubled"
)
REPORT = np.dtype([(name, np.float32) for name in REPORTED.split()])

PROBLEM, PARAMS = ctypes.POINTER(Problem), ctypes.POINTER(Params)
FUNCTIONS = {
    "hyperattn_status_string": (c_char_p, [c_int]),
    "hyperattn_default_params": (Params, []),
    "hyperattn_linear_params": (Params, []),
    "hyperattn_paper_params": (Params, []),
    "hyperattn_workspace_size": (c_size_t, [PROBLEM, PARAMS, c_int]),
    "hyperattn_cost": (c_float, [PROBLEM, PARAMS]),
    "hyperattn_check": (c_int, [PROBLEM, PARAMS, c_void_p, c_size_t, c_int]),
    "hyperattn_forward": (c_int, [PROBLEM, PARAMS, c_void_p, c_size_t]),
    "hyperattn_phase_count": (c_int, [PROBLEM, PARAMS]),
    "hyperattn_phase_tasks": (c_int64, [PROBLEM, PARAMS, c_int]),
    "hyperattn_run_task": (None, [PROBLEM, PARAMS, c_void_p, c_int, c_int64, c_int]),
}

# ---- The library ----


class HyperattnError(ValueError):
    """What the library says is wrong with a call."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


def _found() -> str:
    if named := os.environ.get("HYPERATTN_LIBRARY"):
        return named
    file = {"darwin": "libhyperattn.dylib", "win32": "hyperattn.dll"}.get(sys.platform, "libhyperattn.so")
    here = pathlib.Path(__file__).resolve().parent
    if (here / file).exists():
        return str(here / file)
    source = here.parent.parent
    if built := [*source.glob(f"build*/{file}"), *source.glob(f"build/*/{file}")]:
        return str(max(built, key=lambda path: path.stat().st_mtime))
    if installed := ctypes.util.find_library("hyperattn"):
        return installed
    raise ImportError(f"there is no {file}: `{BUILD}` makes it, or HYPERATTN_LIBRARY names it")


def _same_layout(library: ctypes.CDLL) -> bool:
    """Whether the library names the mistakes that it should find near the ends of the structures. A library
    whose list of mistakes ends elsewhere is not shown any."""
    if library.hyperattn_status_string(-63) != b"the index's memory is smaller than hyperattn_index_size":
        return False
    numbers = (c_float * 2)()
    address = ctypes.addressof(numbers)
    mistakes = (
        (("query", Input(address, page=address)), b"query.page or mask.page is set"),
        (("mask", Input(address, page=address)), b"query.page or mask.page is set"),
        (("sliding_window", -1), b"sliding_window is negative"),
        (("query_error", address), b"query_error is set under HYPERATTN_HYPER"),
        (("cap_kappa", -1), b"cap_epsilon or cap_kappa is negative"),
        (("isa", -1), b"isa is not one of hyperattn_isa"),
    )
    for (name, wrong), text in mistakes:
        params = library.hyperattn_linear_params()
        problem = Problem(1, 1, 1, 1, 1, 1, 1, 0, 0, *[Input(address)] * 3, Output(address + 4))
        setattr(problem if hasattr(problem, name) else params, name, wrong)
        status = library.hyperattn_check(problem, params, address, 0, 1)
        if not library.hyperattn_status_string(status).startswith(text):
            return False
    return True


@functools.cache
def _open(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    is_whole = all(hasattr(library, name) for name in FUNCTIONS)
    for name, (result, arguments) in FUNCTIONS.items() if is_whole else ():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if not is_whole or not _same_layout(library):
        raise ImportError(f"{path} is of another version than this file, which is for version 0.2: `{BUILD}`")
    return library


_library = None


def load(path: str | os.PathLike | None = None) -> ctypes.CDLL:
    """Opens the library at `path`, or finds it, for the calls that follow. attention() does if nobody has."""
    global _library
    if path is not None or _library is None:
        _library = _open(os.fspath(path) if path is not None else _found())
    return _library


# ---- Arrays as tensors ----


def _readable(x: np.ndarray) -> np.ndarray:
    """x itself where the library can read it; else a copy, because the last dimension is not contiguous, or
    numbers are not aligned (strides that are no multiple of the item), or not in the machine's byte order."""
    contiguous = x.shape[-1] <= 1 or x.strides[-1] == x.itemsize
    if contiguous and x.flags.aligned and x.dtype.isnative:
        return x
    return np.ascontiguousarray(x, x.dtype.newbyteorder("="))


def _place(x: np.ndarray) -> tuple:
    """Address, dtype and strides in elements. That of a dimension of one means nothing to the library."""
    return x.ctypes.data, DTYPES[x.dtype.name], *(stride // x.itemsize for stride in x.strides[:3])


def _four_dims(name: str, x: np.ndarray) -> np.ndarray:
    if x.dtype.name not in DTYPES:
        raise ValueError(f"{name} is of {x.dtype}, and the library takes float32, float16 and bfloat16")
    if not 2 <= x.ndim <= 4:
        raise ValueError(f"{name} has {x.ndim} dimensions, not 2 to 4: [batch, heads, rows, dim]")
    return x[(None,) * (4 - x.ndim)]


def _tensors(query, key, value) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three in four dimensions; a batch of one for keys or values is that of every query."""
    given = {"query": query, "key": key, "value": value}
    q, k, v = (_readable(_four_dims(name, np.asarray(x))) for name, x in given.items())
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"a key has {k.shape[3]} numbers and a query {q.shape[3]}")
    if k.shape[1:3] != v.shape[1:3]:
        raise ValueError(f"keys have {k.shape[1:3]} heads and rows, and values {v.shape[1:3]}")
    if not {k.shape[0], v.shape[0]} <= {1, q.shape[0]}:
        raise ValueError(f"query, key, value have batches of {q.shape[0]}, {k.shape[0]}, {v.shape[0]}")
    return q, *(np.broadcast_to(x, (q.shape[0], *x.shape[1:])) for x in (k, v))


def _output(out, shape: tuple, dtype: np.dtype) -> np.ndarray:
    if out is None:
        return np.empty(shape, dtype.newbyteorder("="))
    x = _four_dims("out", out)
    if x.shape != shape:
        raise ValueError(f"out has shape {out.shape}, and the result {shape[4 - out.ndim :]}")
    if not x.flags.writeable or _readable(x) is not x:
        raise ValueError("out is read-only, or its last dimension is not contiguous")
    return x


def _broadcast(name: str, x, shape: tuple) -> np.ndarray:
    try:
        return np.broadcast_to(x, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {np.shape(x)}, which does not broadcast to {shape}") from None


def _mask(mask, shape: tuple) -> np.ndarray:
    """The mask as numbers that are added to the scores, [batch, heads, n_query, n_key]: what is broadcast is
    repeated by strides of zero, not copied, but for the last dimension."""
    x = _broadcast("mask", mask, shape)
    if x.dtype.kind in "iu":
        raise ValueError(f"mask is of {x.dtype}: give bools, True where a query may attend, or floats to add")
    x = x[tuple(slice(1) if stride == 0 else slice(None) for stride in x.strides)]
    if x.dtype == bool:
        x = np.where(x, np.float32(0), np.float32(-np.inf))
    elif x.dtype.name not in DTYPES:
        x = x.astype(np.float32)
    return np.broadcast_to(_readable(np.broadcast_to(x, (*x.shape[:3], shape[3]))), shape)


def _per_head(name: str, x, n_heads: int) -> np.ndarray:
    return np.ascontiguousarray(_broadcast(name, np.asarray(x, np.float32), (n_heads,)))


# ---- Calls ----


def _params(library: ctypes.CDLL, method: str, fields: dict) -> Params:
    presets = {
        "default": (library.hyperattn_default_params, {}),
        "linear": (library.hyperattn_linear_params, {}),
        "exact": (library.hyperattn_default_params, {"method": EXACT}),
        "paper": (library.hyperattn_paper_params, {}),
    }
    if method not in presets:
        raise ValueError(f"method is {method!r}, not one of {', '.join(presets)}")
    preset, own = presets[method]
    params = preset()
    for name, x in {**own, **fields}.items():
        if name not in dict(Params._fields_):
            raise TypeError(f"there is no parameter {name!r}, but {', '.join(dict(Params._fields_))}")
        setattr(params, name, x)
    return params


def _run(library: ctypes.CDLL, problem: Problem, params: Params, n_workers: int) -> int:
    """The status of the call. ctypes lets other threads run while the library does."""
    size = library.hyperattn_workspace_size(problem, params, n_workers)
    workspace = np.empty(max(size, 1), np.uint8)
    call = problem, params, workspace.ctypes.data
    if n_workers == 1:
        return library.hyperattn_forward(*call, size)
    status = library.hyperattn_check(*call, size, n_workers)
    if status:
        return status
    with concurrent.futures.ThreadPoolExecutor(n_workers) as pool:
        for phase in range(library.hyperattn_phase_count(problem, params)):
            n_tasks = library.hyperattn_phase_tasks(problem, params, phase)

            def work(worker: int, phase: int = phase, n_tasks: int = n_tasks) -> None:
                for index in range(worker, n_tasks, n_workers):
                    library.hyperattn_run_task(*call, phase, index, worker)

            list(pool.map(work, range(n_workers)))
    return 0


def attention(
    query,
    key,
    value,
    *,
    causal: bool = False,
    scale: float | None = None,
    method: str = "default",
    tolerance: float | None = None,
    softcap: float = 0,
    sliding_window: int = 0,
    mask=None,
    mask_slope=None,
    sink=None,
    lse: bool = False,
    query_error: bool = False,
    report: bool = False,
    out: np.ndarray | None = None,
    n_workers: int = 1,
    **params,
):
    """softmax(scale * query key^T + mask) value. The default method approximates it for long inputs, to a
    tolerance of 0.1 that is estimated; method="exact" does not. The header says more of each argument.

    query, key, value: [batch, heads, rows, dim], [heads, rows, dim] or [rows, dim] of float32, float16 or
        ml_dtypes' bfloat16, of any strides: only what has no contiguous last dimension is copied. Keys and
        values may have fewer heads than queries, a divisor of their number.
    causal: query i sees keys 0 .. i + n_key - n_query, so the last query sees all.
    scale: None or 0: 1 / sqrt(dim).
    method: "default": each query approximated to a tolerance where that pays, from 1088 keys on (a causal
        prefill: from 1344); "linear": in near-linear time, with a fixed number of keys and no tolerance;
        "exact"; "paper": the HyperAttention paper's parameters.
    tolerance: the relative error that a region or a query may have; None: the method's.
    softcap: scores become softcap * tanh(score / softcap), before the mask.
    sliding_window: a query sees only keys closer than this: before it and, unless causal, behind it.
    mask: broadcasts to [batch, heads, n_query, n_key]. bool: True where a query may attend, as in torch;
        floats: added to the scores. Integers are refused. With a mask every method is exact.
    mask_slope: one number, or one for each head, by which the mask is multiplied (ALiBi).
    sink: one number, or one for each head: a score that joins the sum of every row and has no value.
    lse, query_error, report: return these too, in this order: ln of each row's sum, each query's estimated
        relative error (not for methods of HYPERATTN_HYPER), and how each head went (REPORT).
    out: an array to write to; None: a new one, of the dtype of query.
    n_workers: so many threads, with the same result to the bit.
    params: any other field of hyperattn_params, such as seed or min_seq_len. Its window and sink_keys belong
        to the approximation; a model's are sliding_window and sink.

    HyperattnError, a ValueError, has the library's sentence where the library refuses a call."""
    library = load()
    if tolerance is not None:
        params["tolerance"] = tolerance
    parameters = _params(library, method, params)
    q, k, v = _tensors(query, key, value)
    batch, n_heads, n_query, head_dim = q.shape
    n_key, value_dim = v.shape[2:]
    leading = (batch, n_heads)[4 - np.ndim(query) :]
    result = _output(out, (batch, n_heads, n_query, value_dim), q.dtype)
    optional = {
        "lse": np.empty((*leading, n_query), np.float32) if lse else None,
        "query_error": np.empty((*leading, n_query), np.float32) if query_error else None,
        "report": np.zeros(leading, REPORT) if report else None,
        "mask_slope": None if mask_slope is None else _per_head("mask_slope", mask_slope, n_heads),
        "sink": None if sink is None else _per_head("sink", sink, n_heads),
    }
    added = None if mask is None else _mask(mask, (batch, n_heads, n_query, n_key))

    problem = Problem(batch, n_heads, k.shape[1], n_query, n_key, head_dim, value_dim, causal, scale or 0)
    problem.query, problem.key, problem.value = (Input(*_place(x)) for x in (q, k, v))
    problem.out = Output(*_place(result))
    problem.softcap, problem.sliding_window = softcap, sliding_window
    if added is not None:
        problem.mask = Input(*_place(added))
    for name, x in optional.items():
        if x is not None:
            setattr(problem, name, x.ctypes.data)

    status = _run(library, problem, parameters, n_workers)
    if status:
        raise HyperattnError(status, library.hyperattn_status_string(status).decode())
    results = [result.reshape(*leading, n_query, value_dim) if out is None else out]
    results += [optional[name] for name in ("lse", "query_error", "report") if optional[name] is not None]
    return results[0] if len(results) == 1 else tuple(results)
