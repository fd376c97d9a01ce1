"""What is done with tensors larger than the caches, on small ones: one channel is written while the next is summed."""

import ml_dtypes
import numpy as np
import pytest

from batchnorm.kernels import cpu, dispatch

from .calling import backward, check_backward, check_forward, forward, inference, parameters

SHAPES = {
    "one channel at a time": ((3, 16, 4100), 1),
    "planes that begin within a line": ((5, 40, 301), 1),
    "many together, and some left": ((4, 100, 9, 11), 1),
    "rows": ((700, 64), 1),
    "rows of one vector and a half": ((300, 112), 1),
}


@pytest.fixture
def streaming(monkeypatch):
    """As if every tensor were larger than the caches; and how it is told, and told back."""

    def turn(on):
        dispatch.job.cache_clear()
        monkeypatch.setattr(dispatch, "PAST_CACHES", 0 if on else 1 << 60)
        monkeypatch.setattr(dispatch, "LONG_ROW", 0)

    turn(True)
    yield turn
    dispatch.job.cache_clear()


def aligned(shape, dtype):
    """Memory that begins on a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:size].view(dtype).reshape(shape)


def drawn(shape, dtype, seed=0):
    x = aligned(shape, dtype)
    x[...] = (np.random.default_rng(seed).standard_normal(shape) + 1).astype(dtype)
    return x


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_inference(streaming, shape, dtype):
    dims, axis = SHAPES[shape]
    x, gamma_beta = drawn(dims, dtype), parameters(np.random.default_rng(1), dims[axis], dtype)
    got = forward(x, *gamma_beta, axis=axis, out=aligned(dims, dtype))
    if dtype is not ml_dtypes.bfloat16:  # whose few different squares all round to the same side
        check_forward(x, axis, *gamma_beta, got)
    streaming(False)
    for one, other in zip(got, forward(x, *gamma_beta, axis=axis, out=aligned(dims, dtype)), strict=True):
        np.testing.assert_array_equal(one, other)  # the same sums in the same order
    streaming(True)
    np.testing.assert_array_equal(inference(x, *got[1:], *gamma_beta, axis=axis), got[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_that_begin_within_a_line(streaming, shape, dtype):
    dims, axis = SHAPES[shape]
    x, grad = drawn(dims, dtype), drawn(dims, dtype, 1)
    gamma_beta = parameters(np.random.default_rng(1), dims[axis], dtype)
    y, *statistics = forward(x, *gamma_beta, axis=axis, out=aligned(dims, dtype))
    dx = backward(grad, x, *statistics, *gamma_beta, axis=axis, out=aligned(dims, dtype))[0]
    for off in (1, 7, 31):
        memory = aligned((x.size + 64,), dtype)
        for wanted in (y, dx):
            memory[:] = 77
            out = memory[off : off + x.size].reshape(dims)
            if wanted is y:
                forward(x, *gamma_beta, axis=axis, out=out)
            else:
                backward(grad, x, *statistics, *gamma_beta, axis=axis, out=out)
            np.testing.assert_array_equal(out, wanted)
            assert {*memory[:off].tolist(), *memory[off + x.size :].tolist()} == {77}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_backward(streaming, shape, added, dtype):
    dims, axis = SHAPES[shape]
    x, grad, residual = (drawn(dims, dtype, seed) for seed in range(3))
    gamma_beta = parameters(np.random.default_rng(1), dims[axis], dtype)
    given = {"axis": axis, "activation": "relu", "residual": residual if added else None}
    y, mean, variance = forward(x, *gamma_beta, out=aligned(dims, dtype), **given)
    got = backward(grad, x, mean, variance, *gamma_beta, **given)
    if dtype is np.float32:
        check_forward(x, axis, *gamma_beta, (y, mean, variance), residual=given["residual"], activation="relu")
        check_backward(
            grad, x, axis, *gamma_beta, got, residual=given["residual"], activation="relu"
        )  # half precision: as many elements lie at the kink as it has no digits for
    streaming(False)
    for one, other in zip(got, backward(grad, x, mean, variance, *gamma_beta, **given), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", list(SHAPES)[:3])
def test_the_same_bits_at_any_number_of_threads(streaming, shape):
    dims, axis = SHAPES[shape]
    x = drawn((dims[0] * 4, *dims[1:]), np.float32)
    results = []
    for count in (1, 2, 1):
        before = cpu.set_threads(count)
        try:
            results.append([one.tobytes() for one in forward(x, axis=axis)])
        finally:
            cpu.set_threads(before)
    assert results[0] == results[1] == results[2]


def test_the_leaf_that_does_both_is_used(streaming):
    x = drawn((3, 16, 4100), np.float32)
    views = [cpu.view_of(one) for one in (x, np.empty_like(x))]
    one = cpu._job("training", tuple(views), (dispatch.at.X, dispatch.at.Y), 1, "identity", False)
    assert one.template[dispatch.at.BOTH] != 0
    streaming(False)
    one = cpu._job("training", tuple(views), (dispatch.at.X, dispatch.at.Y), 1, "identity", False)
    assert one.template[dispatch.at.BOTH] == 0
