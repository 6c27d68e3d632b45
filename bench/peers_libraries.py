"""What peers.sh built or installed, as functions to time. What is missing raises Absent with the reason."""

import ctypes
import functools
import importlib.metadata
import itertools
import os
import pathlib
import re
import shutil
import weakref

import numpy as np

import peers_data
from peers_contest import Absent, Run
from peers_data import Shape

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


class Call(ctypes.Structure):
    """peer_call of peers.h."""

    _fields_ = (
        [(name, ctypes.c_char_p) for name in ("kind", "query_dtype", "dtype")]
        + [(name, ctypes.c_int32) for name in ("threads", "causal")]
        + [
            (name, ctypes.c_int64)
            for name in ("heads", "kv_heads", "n_query", "n_key", "head_dim", "value_dim", "copies")
        ]
        + [(name, ctypes.c_void_p) for name in ("query", "key", "value", "out")]
    )


@functools.cache
def peer(name: str) -> ctypes.CDLL:
    """A library with the functions of peers.h."""
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


def peer_attention(name: str, kind: str, shape: Shape, threads: int) -> Run:
    library = peer(name)
    query, key, value = peers_data.tensors(shape)
    query_dtype = "f32" if name == "ggml" or shape.mask == "decode" or shape.dtype == "q8_0" else shape.dtype
    query = peers_data.stored(query, query_dtype)
    out = np.empty((shape.heads, shape.n_query, shape.out_dim), np.float32)
    call = Call(
        kind.encode(),
        query_dtype.encode(),
        shape.dtype.encode(),
        threads,
        int(shape.mask == "causal"),
        *(shape.heads, shape.kv_heads, shape.n_query, shape.n, shape.dim, shape.out_dim, shape.copies),
        *(x if x is None else pointer(x) for x in (query, key, value, out)),
    )
    opened = library.peer_open(ctypes.byref(call))
    if not opened:
        raise Absent(f"{name} has no {kind} of {shape.dtype} on this machine")
    handle = ctypes.c_void_p(opened)

    def run() -> np.ndarray | None:
        if not library.peer_run(handle):
            raise RuntimeError(f"{name} {kind} failed")
        return None if kind == "read" else out

    weakref.finalize(run, close, library, handle, (call, query, key, value))
    return run


def close(library: ctypes.CDLL, handle: ctypes.c_void_p, held: tuple) -> None:
    """Of what a call points to nothing may go before it is closed."""
    library.peer_close(handle)


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


def torch_attention(kind: str, shape: Shape) -> Run:
    """kind: "sdpa", or one of authors.ATTEND; "folded": sdpa of each kv head's queries together, which see all keys;
    "zentorch": AMD's."""
    try:
        import torch
    except ImportError:
        raise Absent("torch is not installed") from None
    import authors

    torch.set_num_threads(1)
    torch.manual_seed(0)
    q, keys, values = peers_data.tensors(shape)
    q = torch.from_numpy(q)[None].to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[shape.dtype])
    turns = itertools.cycle(zip(*(as_torch(x, shape.dtype) for x in (keys, values))))
    causal = shape.mask == "causal"
    if kind == "folded":
        q = q.reshape(1, shape.kv_heads, -1, shape.dim)
    if kind in ("sdpa", "folded"):
        sdpa = torch.nn.functional.scaled_dot_product_attention
        attend = functools.partial(sdpa, is_causal=causal, enable_gqa=q.shape[1] > shape.kv_heads)
    elif kind == "zentorch":
        attend = functools.partial(zentorch_attention(), is_causal=causal)
    else:
        attend = functools.partial(authors.attention, is_causal=causal, attend=authors.ATTEND[kind])

    def run() -> np.ndarray:
        k, v = next(turns)
        return attend(q, k[None], v[None])[0].float().numpy()

    return run


def zentorch_attention():
    """What AMD's extension makes of sdpa."""
    import torch

    try:
        import zentorch  # noqa: F401
    except (ImportError, OSError, RuntimeError) as why:
        raise Absent(f"zentorch: {str(why).splitlines()[0]}") from None

    def attend(q, k, v, is_causal: bool):
        with torch.no_grad():
            out = torch.ops.zentorch.zentorch_sdpa(q, k, v, 0.0, is_causal)
        return out[0] if isinstance(out, (tuple, list)) else out

    return attend


def as_torch(x: np.ndarray, dtype: str):
    import torch

    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if dtype == "bf16" else torch.from_numpy(x)


def onnx_modules():
    try:
        import onnxruntime
        from onnx import TensorProto, helper
    except ImportError as missing:
        raise Absent(f"{missing.name} is not installed") from None
    return onnxruntime, TensorProto, helper


def onnx_session(graph):
    """A session of one thread that runs a graph."""
    onnxruntime, _, helper = onnx_modules()
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def onnxruntime_prefill(shape: Shape) -> Run:
    """MultiHeadAttention of one head."""
    onnxruntime, TensorProto, helper = onnx_modules()
    rows = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, shape.n, shape.dim]) for name in ("q", "k", "v", "out")}
    is_causal = int(shape.mask == "causal")
    node = helper.make_node(
        "MultiHeadAttention", ["q", "k", "v"], ["out"], domain="com.microsoft", num_heads=1, unidirectional=is_causal
    )
    session = onnx_session(helper.make_graph([node], "prefill", [rows[x] for x in "qkv"], [rows["out"]]))
    out = np.empty((1, shape.n, shape.dim), np.float32)
    value_of = onnxruntime.OrtValue.ortvalue_from_numpy
    q, keys, values = peers_data.tensors(shape)
    held = {name: value_of(np.ascontiguousarray(x.reshape(out.shape))) for name, x in zip("qkv", (q, keys, values))}
    result, binding = value_of(out), session.io_binding()
    for name, x in held.items():
        binding.bind_ortvalue_input(name, x)
    binding.bind_ortvalue_output("out", result)

    def run() -> np.ndarray:
        session.run_with_iobinding(binding)
        return result.numpy()

    return run


def onnxruntime_decode(shape: Shape) -> Run:
    """GroupQueryAttention on a cache that is its past and its present at once: a step writes one row and copies none."""
    onnxruntime, TensorProto, helper = onnx_modules()
    heads, kv_heads, n, dim = shape.heads, shape.kv_heads, shape.n, shape.dim
    number = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16}[shape.dtype]
    width = {"q": heads * dim, "k": kv_heads * dim, "v": kv_heads * dim, "out": heads * dim}
    row = {name: helper.make_tensor_value_info(name, number, [1, 1, width[name]]) for name in width}
    cache = {
        name: helper.make_tensor_value_info(name, number, [1, kv_heads, n, dim])
        for name in ("past_k", "past_v", "present_k", "present_v")
    }
    length = {name: helper.make_tensor_value_info(name, TensorProto.INT32, [1]) for name in ("last", "total")}
    inputs = {**{x: row[x] for x in "qkv"}, **{x: cache[x] for x in ("past_k", "past_v")}, **length}
    outputs = {"out": row["out"], **{x: cache[x] for x in ("present_k", "present_v")}}
    node = helper.make_node(
        "GroupQueryAttention", [*inputs], [*outputs], domain="com.microsoft", num_heads=heads, kv_num_heads=kv_heads
    )
    session = onnx_session(helper.make_graph([node], "decode", [*inputs.values()], [*outputs.values()]))
    q, keys, values = peers_data.tensors(shape)
    dtype = peers_data.NUMPY[shape.dtype]
    out = np.empty((1, 1, heads * dim), dtype)
    value_of = onnxruntime.OrtValue.ortvalue_from_numpy
    bound = {
        "q": q.astype(dtype).reshape(1, 1, -1),
        "last": np.array([n - 1], np.int32),
        "total": np.array([n], np.int32),
    }
    bindings = []
    for k, v in zip(keys, values):
        arrays = {
            **bound,
            "k": k[:, -1].reshape(1, 1, -1),
            "v": v[:, -1].reshape(1, 1, -1),
            "past_k": k[None],
            "past_v": v[None],
        }
        held = {name: value_of(np.ascontiguousarray(x)) for name, x in arrays.items()}
        binding = session.io_binding()
        for name, x in held.items():
            binding.bind_ortvalue_input(name, x)
        for name in ("k", "v"):
            binding.bind_ortvalue_output(f"present_{name}", held[f"past_{name}"])
        binding.bind_ortvalue_output("out", value_of(out))
        bindings.append((binding, held))
    turns = itertools.cycle(bindings)

    def run() -> np.ndarray:
        session.run_with_iobinding(next(turns)[0])
        return out.astype(np.float32)

    return run


def openvino_attention(shape: Shape) -> Run:
    """ScaledDotProductAttention; where it decodes, of each kv head's queries together, which see all keys."""
    try:
        import openvino
        from openvino import opset13
    except ImportError:
        raise Absent("openvino is not installed") from None
    number = {"f32": openvino.Type.f32, "f16": openvino.Type.f16, "bf16": openvino.Type.bf16}[shape.dtype]
    q, keys, values = peers_data.tensors(shape)
    q = q.reshape(1, shape.kv_heads, -1, shape.dim)
    inputs = [
        opset13.parameter(openvino.PartialShape(list(x)), openvino.Type.f32)
        for x in (q.shape, *2 * [(1, *keys.shape[1:])])
    ]
    result = opset13.result(opset13.scaled_dot_product_attention(*inputs, causal=shape.mask == "causal"))
    model = openvino.Model([result], inputs)
    cache = openvino.preprocess.PrePostProcessor(model)
    for i in (1, 2):
        cache.input(i).tensor().set_element_type(number)
    hints = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": number,
    }
    request = openvino.Core().compile_model(cache.build(), "CPU", hints).create_infer_request()
    request.set_input_tensor(0, openvino.Tensor(q, shared_memory=True))
    turns = itertools.cycle(
        [openvino.Tensor(x[None], shape=openvino.Shape([1, *x.shape]), type=number) for x in pair]
        for pair in zip(keys, values)
    )
    held = q, keys, values  # tensors share their memory

    def run(held=held) -> np.ndarray:
        for i, x in enumerate(next(turns)):
            request.set_input_tensor(i + 1, x)
        request.infer()
        return np.array(request.get_output_tensor(0).data, np.float32)

    return run
