"""What the intrinsics compile to, and what they compute."""

import ctypes

import llvmlite.binding as llvm
import ml_dtypes
import numpy as np
import pytest
from numba import cfunc, types

from batchnorm.kernels import intrinsics, precision
from batchnorm.kernels.intrinsics import Spec, lanes
from batchnorm.kernels.memory import (
    fence,
    load,
    load_some,
    load_two,
    load_wide,
    prefetch,
    store,
    store_some,
    store_two,
    store_two_past,
    store_wide,
)

X86 = llvm.get_process_triple().startswith("x86_64")
needs_x86 = pytest.mark.skipif(not X86, reason="names of x86 instructions")


def compiled(function, dtype="float32"):
    """A function of two addresses and a Spec, without the cache, so that its code can be looked at."""
    return cfunc(types.void(types.int64, types.int64, Spec(dtype, "identity", False, False, False, 0)))(function)


def call(built, x, y):
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    kind(built.address)(x.ctypes.data, y.ctypes.data, None)


def assembly(function, dtype="float32"):
    return compiled(function, dtype)._library.get_asm_str()


def copy_two_past(x, y, spec):
    store_two_past(spec, y, 0, load(spec, x, 0), load(spec, x, lanes(spec)))
    prefetch(x + 128)
    fence()


def copy_two(x, y, spec):
    store_two(spec, y, 0, load(spec, x, 0), load(spec, x, lanes(spec)))


def widen_two(x, y, spec):
    first, second = load_two(spec, x, 0)
    store_wide(spec, y, 0, first)
    store_wide(spec, y, lanes(spec), second)


def copy(x, y, spec):
    store(spec, y, 0, load(spec, x, 0))


def narrow(x, y, spec):
    store(spec, y, 0, load_wide(spec, x, 0))


def copy_some(x, y, spec):
    store_some(spec, y, 0, load_some(spec, x, 0, 5), 5)


@needs_x86
def test_stores_past_the_caches_prefetch_and_fence_are_emitted():
    code = assembly(copy_two_past)
    assert "vmovntps" in code or "movntps" in code
    assert "prefetch" in code
    assert "sfence" in code
    assert "movnt" not in assembly(copy)


@needs_x86
@pytest.mark.skipif("avx512f" not in intrinsics.HOST, reason="this processor has narrower registers")
def test_a_vector_is_one_register():
    code = assembly(copy_two_past)
    assert "zmm" in code
    assert code.count("vmovntps") == 2


@needs_x86
@pytest.mark.skipif("avx512f" not in intrinsics.HOST, reason="this processor has narrower registers")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_goes_past_the_caches_a_line_at_a_time(dtype):
    code = assembly(copy_two_past, dtype)
    stores = [line for line in code.splitlines() if "vmovnt" in line]
    assert len(stores) == 1
    assert "zmm" in stores[0]


@pytest.mark.parametrize("function", [copy_two, copy_two_past])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_two_vectors_at_once(function, dtype):
    x, memory = np.arange(1, 65).astype(dtype), np.zeros(256, np.uint8)
    count = 16 if dtype == "float64" else 32
    start = -memory.ctypes.data % 64
    y = memory[start : start + count * x.itemsize].view(dtype)
    call(compiled(function, dtype), x, y)
    assert y.astype(float).tolist() == list(range(1, count + 1))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_sums_see_every_element_once(dtype):
    n = 8 if dtype == "float64" else 16
    x, y = np.arange(1, 65).astype(dtype), np.zeros(2 * n, "float64" if dtype == "float64" else "float32")
    call(compiled(widen_two, dtype), x, y)
    assert sorted(y.tolist()) == list(range(1, 2 * n + 1))


@needs_x86
@pytest.mark.skipif("avx512bf16" not in intrinsics.HOST, reason="this processor does not convert bfloat16")
def test_bfloat16_is_converted_by_the_processor():
    assert "vcvtneps2bf16" in assembly(copy, "bfloat16")


def converted(values, dtype, monkeypatch, features):
    """Floats as a store in half precision leaves them."""
    monkeypatch.setattr(precision, "HOST", features)
    x, y = np.resize(np.float32(values), 16), np.empty(16, dtype)
    call(compiled(narrow, np.dtype(dtype).name), x, y)
    return y[: len(values)]


HARD = [1.0, -1.00390625, 1.01171875, 3.3895314e38, 3.4e38, -np.inf, np.inf, np.nan, 0.0, -0.0, 1e-30, 65504.0]


@pytest.mark.parametrize("features", [intrinsics.HOST, intrinsics.HOST - {"avx512bf16"}], ids=["host", "plain"])
def test_rounding_to_bfloat16(features, monkeypatch):
    if "avx512bf16" not in features and "avx512bf16" not in intrinsics.HOST:
        pytest.skip("the same as this processor's own")
    got = converted(HARD, ml_dtypes.bfloat16, monkeypatch, features)
    wanted = np.float32(HARD).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got.astype(np.float32), wanted.astype(np.float32))
    assert np.signbit(got[9])


def test_rounding_to_float16(monkeypatch):
    with np.errstate(over="ignore"):
        wanted = np.float32(HARD).astype(np.float16)
    np.testing.assert_array_equal(converted(HARD, np.float16, monkeypatch, intrinsics.HOST), wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_some_lanes_touch_nothing_else(dtype):
    x, y = np.arange(1, 33).astype(dtype), np.full(32, -1).astype(dtype)
    call(compiled(copy_some, dtype), x, y)
    assert y[:6].astype(float).tolist() == [1, 2, 3, 4, 5, -1]
    assert (y[5:] == -1).all()
