"""Attention of llama-cpp-python through hyperattn.h:

    import hyperattn_llama
    hyperattn_llama.enable("libggml-hyperattn.so")    # before a model is loaded; False: it does not fit, and nothing changes
    llama = llama_cpp.Llama("model.gguf", flash_attn=True)    # for "default": n_batch=4096, n_ubatch=4096 too

method is HYPERATTN_GGML: "exact" (no less exact than ggml), "default" (long prompts are approximated), "linear", "paper", "force"
or "off"; tolerance and min_seq_len are HYPERATTN_GGML_TOLERANCE and HYPERATTN_GGML_MIN_SEQ_LEN. None leaves what the
environment says. They count when the library is loaded, which is once in a process.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import sys


def enable(
    library: str | os.PathLike[str],
    method: str | None = None,
    tolerance: float | None = None,
    min_seq_len: int | None = None,
) -> bool:
    """Loads the backend into the ggml that llama_cpp uses; whether it fits. If not, a line on stderr says why (none for "off")."""
    import llama_cpp

    path = pathlib.Path(library).resolve(strict=True)
    settings = {"": method, "_TOLERANCE": tolerance, "_MIN_SEQ_LEN": min_seq_len}
    os.environ.update({f"HYPERATTN_GGML{name}": str(value) for name, value in settings.items() if value is not None})
    llama_cpp.llama_backend_init()  # a ggml whose own backends are libraries loads them only while there are none
    # looked up in libllama and in the libraries that it needs
    load = getattr(llama_cpp.llama_cpp._lib, "ggml_backend_load", None)
    if load is None:
        print(f"hyperattn: not used: llama_cpp {llama_cpp.__version__} loads no backends", file=sys.stderr)
        return False
    load.argtypes, load.restype = [ctypes.c_char_p], ctypes.c_void_p
    return load(os.fsencode(path)) is not None
