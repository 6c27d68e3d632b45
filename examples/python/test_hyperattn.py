"""hyperattn.py against plain numpy in float64: python3 examples/python/test_hyperattn.py"""

import ctypes.util
import functools
import importlib.util
import pathlib
import re
import shutil
import sys
import tempfile
import types
import unittest
from ctypes import c_float, c_int, c_int32, c_int64, c_ssize_t, c_uint64, c_void_p
from unittest import mock

try:
    import numpy as np
except ImportError:
    print("SKIP: no numpy")
    sys.exit(77)

from numpy.lib.stride_tricks import as_strided

import hyperattn
from hyperattn import HyperattnError, attention

BOUND = 2e-6  # relative error in Frobenius norms, float32
BOUND_F16 = 6e-4  # the same where out is rounded to float16
worst = {"float32": 0.0, "float16": 0.0}
n_compared = 0


def tearDownModule():
    print(f"{n_compared} results compared; worst relative errors {worst}", file=sys.stderr)


def tensors(rng, batch=1, n_heads=2, n_kv_heads=2, n_query=9, n_key=9, head_dim=8, value_dim=8, dtype="f4"):
    shapes = (n_heads, n_query, head_dim), (n_kv_heads, n_key, head_dim), (n_kv_heads, n_key, value_dim)
    return [rng.standard_normal((batch, *shape)).astype(dtype) for shape in shapes]


def hidden_keys(n_query, n_key, causal, sliding_window):
    ahead = np.arange(n_key) - (np.arange(n_query) + n_key - n_query)[:, None]
    hidden = (ahead > 0) if causal else np.zeros(ahead.shape, bool)
    if sliding_window:
        hidden |= -ahead >= sliding_window
        hidden |= ahead >= sliding_window
    return hidden


def scores(q, k, scale, softcap, mask, mask_slope):
    s = q @ np.swapaxes(k, 2, 3) * (scale or q.shape[3] ** -0.5)
    if softcap:
        s = softcap * np.tanh(s / softcap)
    if mask is None:
        return s
    if mask.dtype == bool:
        mask = np.where(mask, 0.0, -np.inf)
    slope = np.ones(1) if mask_slope is None else np.asarray(mask_slope, float).reshape(-1)
    seen = np.where(mask == -np.inf, 0, mask.astype(float))
    return np.where(mask == -np.inf, -np.inf, s + seen * slope[:, None, None])


def reference(query, key, value, causal=False, scale=None, softcap=0, sliding_window=0, mask=None,
              mask_slope=None, sink=None):  # fmt: skip
    """Output and lse of four-dimensional arrays in float64; a row that sees no key is 0 and -inf."""
    group = query.shape[1] // key.shape[1]
    q, k, v = query.astype(float), *(np.repeat(x.astype(float), group, 1) for x in (key, value))
    s = scores(q, k, scale, softcap, mask, mask_slope)
    s[..., hidden_keys(q.shape[2], k.shape[2], causal, sliding_window)] = -np.inf
    sinks = -np.inf if sink is None else np.asarray(sink, float).reshape(-1, 1, 1)
    sinks = np.broadcast_to(sinks, (*q.shape[:3], 1))
    top = np.max(np.concatenate([s, sinks], 3), 3, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    weights = np.exp(s - top)
    total = weights.sum(3, keepdims=True) + np.exp(sinks - top)
    with np.errstate(divide="ignore"):
        lse = np.log(total) + top
    return weights @ v / np.where(total > 0, total, 1), lse[..., 0]


def relative_error(got, expected):
    norm = np.linalg.norm(expected)
    return np.linalg.norm(got.astype(float) - expected) / (norm or 1.0)


class Case(unittest.TestCase):
    def setUp(self):
        self.rng = np.random.default_rng(2310)

    def near(self, got, expected):
        global n_compared
        self.assertEqual(got.shape, expected.shape)
        error = relative_error(got, expected)
        self.assertLessEqual(error, BOUND_F16 if got.dtype == np.float16 else BOUND)
        worst[got.dtype.name] = max(worst[got.dtype.name], float(error))
        n_compared += 1

    def near_lse(self, got, expected):
        seen = np.isfinite(expected)
        self.assertTrue(np.array_equal(got[~seen], expected[~seen]))
        self.assertLessEqual(np.abs(got[seen] - expected[seen]).max(initial=0), 1e-5)

    def check(self, query, key, value, **options):
        out, lse = attention(query, key, value, method="exact", lse=True, **options)
        options.pop("n_workers", None)
        expected, expected_lse = reference(query, key, value, **options)
        self.near(out, expected)
        self.near_lse(lse, expected_lse)
        return out

    def same(self, a, b):
        self.assertTrue(np.array_equal(a, b))


class Shapes(Case):
    def test_dims_of_query_are_those_of_the_results(self):
        q, k, v = tensors(self.rng)
        whole, lse = attention(q, k, v, method="exact", lse=True)
        options = {"method": "exact", "lse": True, "report": True}
        heads, lse_heads, report = attention(q[0], k[0], v[0], **options)
        rows, lse_rows, row_report = attention(q[0, 1], k[0, 1], v[0, 1], **options)
        self.same(heads, whole[0]), self.same(rows, whole[0, 1])
        self.same(lse_heads, lse[0]), self.same(lse_rows, lse[0, 1])
        self.assertEqual((report.shape, row_report.shape), ((2,), ()))

    def test_sizes(self):
        for n_query, n_key in (1, 1), (1, 70), (64, 64), (65, 130), (200, 33):
            for head_dim, value_dim in (1, 1), (64, 64), (80, 32), (33, 129):
                for causal in False, True:
                    with self.subTest(n_query=n_query, n_key=n_key, head_dim=head_dim, causal=causal):
                        q, k, v = tensors(self.rng, 2, 2, 2, n_query, n_key, head_dim, value_dim)
                        self.check(q, k, v, causal=causal)

    def test_grouped_heads(self):
        for n_kv_heads in 1, 2, 3, 6:
            self.check(*tensors(self.rng, 2, 6, n_kv_heads, 20, 31), causal=True)

    def test_scale(self):
        self.check(*tensors(self.rng), scale=0.7)
        self.check(*tensors(self.rng), scale=-0.7)

    def test_nothing(self):
        q, k, v = tensors(self.rng, n_query=0)
        self.assertEqual(attention(q, k, v).shape, (1, 2, 0, 8))
        q, k, v = tensors(self.rng, batch=0)
        self.assertEqual(attention(q, k, v).shape, (0, 2, 9, 8))
        self.check(*tensors(self.rng, n_key=0))

    def test_one_batch_of_keys_for_all(self):
        q, k, v = tensors(self.rng, 3)
        repeated = [np.repeat(x[:1], 3, 0) for x in (k, v)]
        self.same(attention(q, k[:1], v[:1]), attention(q, *repeated))

    def test_float16(self):
        for n in 7, 200:
            q, k, v = tensors(self.rng, 2, 4, 2, n, n, 40, 24, np.float16)
            self.assertEqual(self.check(q, k, v, causal=True).dtype, np.float16)
            self.assertEqual(self.check(q.astype(np.float32), k, v).dtype, np.float32)
            self.check(q.astype(np.float32), k, v.astype(np.float32))

    def test_bfloat16(self):
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            self.skipTest("no ml_dtypes")
        q, k, v = (x.astype(bfloat16) for x in tensors(self.rng, 2, 4, 2, 20, 33))
        out = attention(q, k, v, method="exact", causal=True)
        self.assertEqual(out.dtype, bfloat16)
        self.assertLessEqual(relative_error(out, reference(q, k, v, causal=True)[0]), 2.0**-8)

    def test_out(self):
        q, k, v = tensors(self.rng)
        place = np.zeros((1, 9, 2, 8), np.float16)
        out = np.swapaxes(place, 1, 2)
        self.assertIs(attention(q, k, v, method="exact", out=out), out)
        self.near(out, reference(q, k, v)[0])

    def test_workers_change_no_bit(self):
        q, k, v = tensors(self.rng, 2, 3, 1, 300, 500, 32, 32)
        for options in {"method": "exact"}, {"method": "linear", "min_seq_len": 64, "causal": True}:
            options |= {"lse": True, "report": True}
            one = attention(q, k, v, **options)
            for n_workers in 2, 5:
                for a, b in zip(one, attention(q, k, v, n_workers=n_workers, **options)):
                    self.same(a, b)


class Strides(Case):
    def uncopied(self, *arrays):
        for x in arrays:
            self.assertIs(hyperattn._readable(x), x)

    def test_tokens_first(self):
        q, k, v = (np.swapaxes(x, 1, 2).copy().swapaxes(1, 2) for x in tensors(self.rng, 2, 4, 2, 30, 30))
        self.uncopied(q, k, v)
        self.check(q, k, v, causal=True)

    def test_packed(self):
        packed = self.rng.standard_normal((2, 30, 3, 4, 16), np.float32)
        q, k, v = (packed[:, :, i].swapaxes(1, 2) for i in range(3))
        self.uncopied(q, k, v)
        self.check(q, k, v, causal=True)

    def test_negative_and_zero(self):
        q, k, v = tensors(self.rng, 2, 4, 4, 30, 30)
        q, k, v = q[:, ::-1, ::2], k[::-1, :, ::-1], np.broadcast_to(v[:, :1], v.shape)
        self.uncopied(q, k, v)
        self.check(q, k, v)

    def test_dims_of_one_have_any_stride(self):
        q, k, v = tensors(self.rng, 2, 4, 4, 30, 30)
        q, k, v = (as_strided(x[:1, :1], strides=(3, -5, *x.strides[2:])) for x in (q, k, v))
        self.uncopied(q, k, v)
        self.check(q, k, v)

    def test_what_must_be_copied(self):
        q, k, v = tensors(self.rng, 2, 4, 4, 30, 30)
        fields = np.zeros(k.shape[:3], np.dtype([("byte", np.int8), ("row", np.float32, 8)]))
        fields["row"] = k
        transposed = np.ascontiguousarray(q.swapaxes(2, 3)).swapaxes(2, 3)
        for x in transposed, fields["row"], v.astype(">f4"), v[..., ::-1]:
            self.assertIsNot(hyperattn._readable(x), x)
        self.check(transposed, fields["row"], v.astype(">f4"))
        self.check(q, k, v[..., ::-1])


class Masks(Case):
    def setUp(self):
        super().setUp()
        self.tensors = tensors(self.rng, 2, 4, 2, 33, 71, 16, 16)

    def test_bool(self):
        for shape in (2, 4, 33, 71), (33, 71), (2, 1, 1, 71), (4, 1, 71), (2, 1, 33, 1), (1,), (71,):
            for causal in False, True:
                with self.subTest(shape=shape, causal=causal):
                    self.check(*self.tensors, mask=self.rng.random(shape) < 0.7, causal=causal)

    def test_nothing_allowed(self):
        out, lse = attention(*self.tensors, mask=np.zeros((33, 71), bool), lse=True)
        self.assertFalse(out.any())
        self.assertTrue((lse == -np.inf).all())

    def test_numbers(self):
        for dtype in np.float32, np.float16, np.float64:
            for shape in (2, 4, 33, 71), (33, 71), (4, 33, 1), (71,):
                with self.subTest(dtype=dtype, shape=shape):
                    self.check(*self.tensors, mask=(3 * self.rng.standard_normal(shape)).astype(dtype))

    def test_views(self):
        mask = self.rng.standard_normal((71, 33), np.float32).T
        self.check(*self.tensors, mask=mask)
        self.check(*self.tensors, mask=mask[::-1, ::-1])
        self.check(*self.tensors, mask=np.tril(np.ones((71, 71), bool))[-33:])

    def test_broadcasting_copies_nothing(self):
        rows, shape = self.rng.standard_normal((33, 71), np.float32), (2, 4, 33, 71)
        for given in rows, rows > 0:
            for broadcast in given, np.broadcast_to(given, shape):
                self.assertEqual(hyperattn._mask(broadcast, shape).strides, (0, 0, 71 * 4, 4))
        self.assertEqual(hyperattn._mask(rows, shape).ctypes.data, rows.ctypes.data)
        self.assertEqual(hyperattn._mask(True, shape).strides, (0, 0, 0, 4))

    def test_slopes(self):
        distance = np.arange(71.0) - (np.arange(33) + 71 - 33)[:, None]
        slopes = 2.0 ** -np.arange(1, 5)
        self.check(*self.tensors, mask=distance, mask_slope=slopes, causal=True)
        self.check(*self.tensors, mask=distance.astype(np.float16), mask_slope=0.25, causal=True)

    def test_a_hidden_key_may_hold_anything(self):
        q, k, v = self.tensors
        mask = np.ones((33, 71), np.float32)
        mask[:, 5:9] = -np.inf
        expected = [self.check(q, k, v, mask=mask, mask_slope=slope) for slope in (1, 0, -1)]
        k, v = k.copy(), v.copy()
        k[:, :, 5:9], v[:, :, 5:9] = np.nan, np.inf
        for slope, out in zip((1, 0, -1), expected):
            self.same(attention(q, k, v, mask=mask, mask_slope=slope, method="exact"), out)

    def test_a_shape_that_does_not_fit(self):
        for shape in (33, 70), (3, 33, 71), (1, 2, 4, 33, 71):
            with self.assertRaisesRegex(ValueError, re.escape(f"mask has shape {shape}, which does not")):
                attention(*self.tensors, mask=np.ones(shape, bool))

    def test_integers_are_refused(self):
        for dtype in np.int8, np.uint8, np.int32, np.int64:
            with self.assertRaisesRegex(ValueError, f"mask is of {np.dtype(dtype)}: give bools"):
                attention(*self.tensors, mask=np.ones((33, 71), dtype))
        with self.assertRaisesRegex(ValueError, "mask is of int"):
            attention(*self.tensors, mask=1)


class Scores(Case):
    def test_softcap(self):
        for softcap in 0.5, 5, 50:
            self.check(*tensors(self.rng, 1, 2, 1, 40, 40), softcap=softcap, scale=2)

    def test_sliding_window(self):
        for n_query, n_key in (90, 90), (20, 90), (90, 20):
            for window in 1, 7, 64, 200:
                for causal in False, True:
                    with self.subTest(n_query=n_query, n_key=n_key, window=window, causal=causal):
                        q, k, v = tensors(self.rng, 1, 2, 1, n_query, n_key)
                        self.check(q, k, v, sliding_window=window, causal=causal)

    def test_sinks(self):
        q, k, v = tensors(self.rng, 2, 4, 2, 40, 40)
        self.check(q, k, v, sink=[0.5, -np.inf, 3, -2], causal=True)
        self.check(q, k, v, sink=1.5)
        self.check(*tensors(self.rng, n_query=12, n_key=5), sink=1.5, causal=True)

    def test_everything_at_once(self):
        for _ in range(100):
            n_kv_heads = int(self.rng.integers(1, 4))
            n_heads = n_kv_heads * int(self.rng.integers(1, 4))
            batch, n_query, n_key, *dims = (int(n) for n in self.rng.integers(1, [3, 90, 90, 70, 70]))
            options = {"causal": bool(self.rng.random() < 0.5)}
            if self.rng.random() < 0.5:
                options["softcap"] = float(self.rng.uniform(1, 20))
            if self.rng.random() < 0.5:
                options["sliding_window"] = int(self.rng.integers(1, 60))
            if self.rng.random() < 0.5:
                options["sink"] = self.rng.standard_normal(n_heads)
            if self.rng.random() < 0.5:
                mask = self.rng.standard_normal((n_query, n_key), np.float32)
                options["mask"] = np.where(mask < -1.5, np.float32(-np.inf), mask)
                options["mask_slope"] = self.rng.uniform(-2, 2, n_heads)
            n_workers = int(self.rng.integers(1, 4))
            with self.subTest(n_query=n_query, n_key=n_key, **options):
                q, k, v = tensors(self.rng, batch, n_heads, n_kv_heads, n_query, n_key, *dims)
                self.check(q, k, v, n_workers=n_workers, **options)


class Approximations(Case):
    """Keys in clusters, which queries look for: attention that a few keys decide."""

    def setUp(self):
        super().setUp()
        n, dim = 2048, 32
        centres = 2 * self.rng.standard_normal((2, 16, dim), np.float32)
        place = self.rng.integers(0, 16, (2, 2, n))
        noise = self.rng.standard_normal((2, 2, n, dim), np.float32) / 2
        heads = np.arange(2)[:, None]
        self.q, self.k = (centres[heads, places] + near for places, near in zip(place, noise))
        self.v = self.rng.standard_normal((2, 16, dim), np.float32)[heads, place[1]]
        self.budget = {"block_size": 128, "sample_size": 64, "heavy_keys": 16, "window": 64}

    def test_default_keeps_its_tolerance(self):
        for causal in False, True:
            exact = attention(self.q, self.k, self.v, method="exact", causal=causal)
            out = attention(self.q, self.k, self.v, causal=causal, min_seq_len=256)
            self.assertLessEqual(relative_error(out, exact.astype(float)), 0.15)

    def test_linear_keeps_a_tolerance_and_reports(self):
        for causal in False, True:
            exact = attention(self.q, self.k, self.v, method="exact", causal=causal)
            options = {"causal": causal, "lse": True, "report": True, "min_seq_len": 256, **self.budget}
            options |= {"method": "linear", "tolerance": 0.1}
            out, lse, report = attention(self.q, self.k, self.v, **options)
            self.assertEqual((report.dtype, report.shape, lse.shape), (hyperattn.REPORT, (2,), (2, 2048)))
            for head in range(2):
                error = relative_error(out[head], exact[head].astype(float))
                with self.subTest(causal=causal, head=head, error=error, report=report[head]):
                    self.assertLessEqual(error, 0.15)
                    self.check_report(report[head], error)

    def check_report(self, report, error):
        self.assertTrue(0 < report["keys_per_query"] <= 2048)
        self.assertTrue(0 <= report["exact"] <= report["escalated"] < 1)
        masses = sum(report[name] for name in hyperattn.REPORT.names if name.endswith("_mass"))
        self.assertAlmostEqual(masses, 1, places=3)
        self.assertTrue(error / 3 <= report["error"] <= 3 * error)

    def test_methods_differ(self):
        q, k, v = (np.tile(x, (1, 4, 1)) for x in (self.q, self.k, self.v))
        out = {name: attention(q, k, v, method=name, report=True) for name in ("exact", "linear", "paper")}
        self.assertEqual(out["exact"][1]["error"].max(), 0)
        for name in "linear", "paper":
            self.assertFalse(np.array_equal(out[name][0], out["exact"][0]))
            self.assertLess(out[name][1]["keys_per_query"].max(), 4096)
        self.assertFalse(np.array_equal(out["linear"][0], out["paper"][0]))
        self.same(attention(q, k, v, method="linear", tolerance=0), out["linear"][0])
        self.assertFalse(np.array_equal(attention(q, k, v, method="linear", seed=7), out["linear"][0]))

    def test_noise_needs_every_key_but_not_at_a_fixed_number(self):
        q, k, v = (self.rng.standard_normal((2048, 32), np.float32) for _ in range(3))
        options = {"method": "linear", "report": True, "min_seq_len": 256, **self.budget}
        for tolerance, share in (0.1, 1), (0, 0):
            _, report = attention(q, k, v, tolerance=tolerance, **options)
            self.assertEqual(report["exact"], share)

    def test_report_of_exact(self):
        _, report = attention(self.q, self.k, self.v, method="exact", report=True)
        self.assertFalse(report["error"].any())
        self.same(report["keys_per_query"], np.full(2, 2048, np.float32))
        self.assertFalse(report["error_999"].any() or report["doubled"].any())

    def test_errors_of_queries(self):
        out, lse, error = attention(self.q, self.k, self.v, method="exact", lse=True, query_error=True)
        self.same(out, attention(self.q, self.k, self.v, method="exact"))
        self.assertEqual((error.shape, error.dtype), (lse.shape, np.float32))
        self.assertFalse(error.any())


class Errors(Case):
    def says(self, text, *given, kind=HyperattnError, **options):
        with self.assertRaisesRegex(kind, text):
            attention(*(given or tensors(self.rng)), **options)

    def test_the_library_s_sentences(self):
        with self.assertRaises(ValueError) as raised:
            attention(*tensors(self.rng), scale=np.nan)
        self.assertEqual((str(raised.exception), raised.exception.status), ("scale is NaN or infinite", -19))
        self.says("n_heads is not a multiple of n_kv_heads", *tensors(self.rng, n_heads=3))
        self.says("head_dim is not in 1 .. 576", *tensors(self.rng, head_dim=577))
        self.says("softcap is negative", softcap=-1)
        self.says("sliding_window is negative", sliding_window=-1)
        self.says("tolerance is negative", tolerance=-1)
        self.says("min_seq_len is below 1", min_seq_len=0)
        self.says("n_workers is below 1", n_workers=0)
        self.says("isa is not one of", isa=99)
        self.says("query_error is set under HYPERATTN_HYPER", method="linear", query_error=True)
        q, k, v = tensors(self.rng)
        self.says("overlaps another buffer", q, k, v, out=q)
        self.says("rows overlap", q, k, v, out=as_strided(v.copy(), strides=(0, 0, 0, 4)))

    def test_python_s_sentences(self):
        q, k, v = tensors(self.rng)
        says = functools.partial(self.says, kind=ValueError)
        says("query is of float64", q.astype(float), k, v)
        says("value is of int32", q, k, v.astype(np.int32))
        says("key has 1 dimensions", q, k[0, 0, 0], v)
        says("a key has 7 numbers and a query 8", q, k[..., :7], v)
        says("heads and rows", q, k[:, :, :5], v)
        says("have batches of 1, 2, 1", q, np.repeat(k, 2, 0), v)
        says("method is 'fast', not one of default, linear, exact, paper", method="fast")
        says("out has shape", out=np.empty((2, 9, 7), np.float32))
        says("sink has shape .3,., which does not broadcast to .2,.", sink=[1, 2, 3])
        says("mask_slope has shape .2, 1.,", mask=np.zeros(9), mask_slope=[[1], [2]])
        says("out is read-only", out=np.broadcast_to(np.float32(0), q.shape))
        self.says("there is no parameter 'blocks'", kind=TypeError, blocks=3)


class Library(Case):
    def test_structures_are_the_header_s(self):
        header = (pathlib.Path(hyperattn.__file__).parents[2] / "hyperattn.h").read_text()
        header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
        kinds = {"int64_t": c_int64, "int32_t": c_int32, "uint64_t": c_uint64, "ptrdiff_t": c_ssize_t}
        kinds |= {"float": c_float, "hyperattn_input": hyperattn.Input, "hyperattn_output": hyperattn.Output}
        for structure in hyperattn.Input, hyperattn.Output, hyperattn.Problem, hyperattn.Params:
            name = structure.__name__.lower()
            body = re.search(rf"struct hyperattn_{name} {{(.*?)}} hyperattn_{name};", header, re.DOTALL)[1]
            fields = []
            for declared in body.split(";")[:-1]:
                if pointer := re.search(r"\*(\w+)", declared):
                    fields.append((pointer[1], c_void_p))
                else:
                    kind, names = declared.split(None, 1)
                    fields += [(each.strip(), kinds.get(kind, c_int)) for each in names.split(",")]
            self.assertEqual(structure._fields_, fields)
        reported = re.search(r"struct hyperattn_report {(.*?)}", header, re.DOTALL)[1]
        self.assertEqual(hyperattn.REPORT.names, tuple(re.findall(r"\w+", reported.replace("float", ""))))

    def test_where_it_is_found(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder).resolve()
            here = root / "examples" / "python"
            (root / "build" / "shared").mkdir(parents=True), here.mkdir(parents=True)
            spec = importlib.util.spec_from_file_location("copied", shutil.copy(hyperattn.__file__, here))
            copied = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(copied)
            with (
                mock.patch.dict("os.environ", {"HYPERATTN_LIBRARY": ""}),
                mock.patch.object(sys, "platform", "linux"),
                mock.patch("ctypes.util.find_library", lambda name: None),
            ):
                with self.assertRaisesRegex(ImportError, "there is no libhyperattn.so: `cmake .*SHARED=ON"):
                    copied.load()
                for place in root / "build" / "shared", here:
                    (place / "libhyperattn.so").touch()
                    self.assertEqual(copied._found(), str(place / "libhyperattn.so"))
            with mock.patch.dict("os.environ", {"HYPERATTN_LIBRARY": "named.so"}):
                self.assertEqual(copied._found(), "named.so")
                self.assertRaises(OSError, copied.load)

    def test_another_version_is_refused(self):
        real = hyperattn.load()
        self.assertTrue(hyperattn._same_layout(real))
        older = types.SimpleNamespace(hyperattn_status_string=lambda status: b"unknown status")
        self.assertFalse(hyperattn._same_layout(older))
        functions = {name: getattr(real, name) for name in hyperattn.FUNCTIONS}
        careless = types.SimpleNamespace(**{**functions, "hyperattn_check": lambda *call: 0})
        self.assertFalse(hyperattn._same_layout(careless))
        with self.assertRaisesRegex(ImportError, "is of another version"):
            hyperattn.load(ctypes.util.find_library("c"))
        self.assertIs(hyperattn.load(), real)


if __name__ == "__main__":
    unittest.main()
