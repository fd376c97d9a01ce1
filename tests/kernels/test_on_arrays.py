"""The NumPy operations by the kernels: against `core.ops`, and whatever is done to them."""

import os
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm.core import ops
from batchnorm.core.dtypes import unit_roundoff
from batchnorm.errors import ArgumentError
from batchnorm.kernels import cpu, on_arrays, operands

SHAPE, AXIS = (8, 20, 9, 11), 1  # more elements than `tiny` takes
RNG = np.random.default_rng(0)
X = (RNG.standard_normal(SHAPE) + 3).astype(np.float32)
GRAD = RNG.standard_normal(SHAPE).astype(np.float32)
GAMMA, BETA = RNG.standard_normal((2, 20)).astype(np.float32)


def assert_close(got, wanted, dtype="float32"):
    """Within 12 roundings of the arithmetic (7u each way in float32, see `output_bound`) and one to the type."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    u = unit_roundoff("float64" if dtype == "float64" else "float32")
    size = np.max(np.abs(wanted), initial=1.0)
    assert np.all(np.abs(got - wanted) <= 12 * u * size + 2 * unit_roundoff(dtype) * np.abs(wanted))


def all_four(x, axis, grad, gamma=GAMMA, beta=BETA, mask=None, module=on_arrays):
    """Every operation's results, in one list."""
    given = {"axis": axis, "mask": mask}
    y, batch = module.batch_norm(x, gamma, beta, epsilon=1e-3, **given)
    again = module.normalize(x, batch.mean, batch.variance, gamma, beta, epsilon=1e-3, axis=axis)
    back = module.batch_norm_grad(grad, x, gamma, epsilon=1e-3, **given)
    return [y, *batch, *module.moments(x, **given), again, *back]


def compare(x, axis, grad, dtype="float32", **given):
    wide = [np.asarray(one).astype(np.float64) for one in (x, grad)]
    wanted = all_four(wide[0], axis, wide[1], module=ops, **given)
    for one, other in zip(all_four(x, axis, grad, **given), wanted, strict=True):
        assert_close(one, other, dtype)


ODD = {
    "reversed": lambda a: a[::-1, ::-1, ::-1, ::-1][::-1, ::-1, ::-1, ::-1][:, :, ::-1],
    "columns reversed": lambda a: a[..., ::-1],
    "channels last in memory": lambda a: np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "every other": lambda a: np.repeat(a, 2, axis=3)[..., ::2],
    "from a wider array": lambda a: np.pad(a, 2)[2:-2, 2:-2, 2:-2, 2:-2],
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    "samples repeated": lambda a: np.broadcast_to(a[:1], a.shape),
    "Fortran": np.asfortranarray,
}


@pytest.mark.parametrize("layout", ODD)
def test_any_memory_layout(layout):
    compare(ODD[layout](X), AXIS, ODD[layout](GRAD))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_element_types(dtype):
    x, grad = X.astype(dtype), GRAD.astype(dtype)
    y, _ = on_arrays.batch_norm(x, GAMMA, BETA, epsilon=1e-3, axis=1)
    assert y.dtype == np.dtype(dtype)
    compare(x, AXIS, grad, dtype)


def test_masks_and_other_axes():
    for axis in (0, 2, 3, -1):
        channels = SHAPE[axis]
        mask = np.random.default_rng(1).random(np.delete(SHAPE, axis)) < 0.7
        compare(X, axis, GRAD, gamma=GAMMA[:channels], beta=BETA[:channels], mask=mask)
    compare(X, 1, GRAD, mask=np.arange(8).reshape(8, 1, 1, 1) < 5)
    compare(X, (1, 2), GRAD, gamma=None, beta=None)


@given(
    shape=st.lists(st.integers(1, 24), min_size=2, max_size=4),
    pads=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=4, max_size=4),
    steps=st.lists(st.sampled_from([1, 1, 2, -1]), min_size=4, max_size=4),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_any_shape_order_stride_and_offset(shape, pads, steps, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    order = data.draw(st.permutations(range(len(shape))))
    big = [sum(pad) + abs(step) * n for n, pad, step in zip(shape, pads, steps, strict=False)]
    seed = data.draw(st.integers(0, 99))
    memory = np.random.default_rng(seed).standard_normal([big[i] for i in order]).astype(np.float32)
    view = memory.transpose(np.argsort(order))
    cut = tuple(slice(pad[0], pad[0] + abs(step) * n) for n, pad, step in zip(shape, pads, steps, strict=False))
    x = view[cut][tuple(slice(None, None, step) for step in steps[: len(shape)])]
    assert list(x.shape) == shape
    rows = np.empty((2, shape[axis]))
    target = operands.Target(None, operands.readable(x), axis)
    source, place, _ = target.views()
    cpu.forward(source, place, *map(cpu.view_of, rows), axis=axis, epsilon=1e-3)
    y, batch = ops.batch_norm(x.astype(np.float64), epsilon=1e-3, axis=axis)
    assert_close(target.done(), y)
    np.testing.assert_allclose(rows[1], batch.variance, rtol=3e-7, atol=1e-30)


# -- out= --------------------------------------------------------------------------------------------------------------

WANTED, _ = on_arrays.batch_norm(X, GAMMA, BETA, epsilon=1e-3, axis=1)


def test_out_takes_the_result():
    out = np.empty_like(X)
    y, _ = on_arrays.batch_norm(X, GAMMA, BETA, epsilon=1e-3, axis=1, out=out)
    assert y is out
    np.testing.assert_array_equal(out, WANTED)
    wide = np.empty((*SHAPE, 2), np.float32)[..., 0]  # as the kernels do not write
    y, _ = on_arrays.batch_norm(X, GAMMA, BETA, epsilon=1e-3, axis=1, out=wide)
    assert y is wide
    np.testing.assert_array_equal(wide, WANTED)
    swapped = np.empty(SHAPE, ">f4")
    np.testing.assert_array_equal(on_arrays.batch_norm(X, GAMMA, BETA, epsilon=1e-3, axis=1, out=swapped)[0], WANTED)


def test_out_for_small_arrays_too():
    x = X[:1, :, :2, :2]
    for call in (
        lambda out: on_arrays.batch_norm(x, epsilon=1e-3, axis=1, out=out)[0],
        lambda out: on_arrays.normalize(x, np.zeros(20), np.ones(20), epsilon=1e-3, axis=1, out=out),
        lambda out: on_arrays.batch_norm_grad(x, x, epsilon=1e-3, axis=1, out=out).x,
    ):
        out = np.empty_like(x)
        assert call(out) is out
        np.testing.assert_array_equal(out, call(None))


@pytest.mark.parametrize("shift", [0, 1, 7, 20 * 99, -20 * 99])
def test_out_may_overlap_the_input(shift):
    memory = np.empty(X.size + 2 * abs(shift), np.float32)
    x = memory[abs(shift) : abs(shift) + X.size].reshape(SHAPE)
    out = memory[abs(shift) + shift : abs(shift) + shift + X.size].reshape(SHAPE)
    x[...] = X
    on_arrays.batch_norm(x, GAMMA, BETA, epsilon=1e-3, axis=1, out=out)
    np.testing.assert_array_equal(out, WANTED)
    x[...] = X
    wanted = on_arrays.batch_norm_grad(GRAD, X, GAMMA, epsilon=1e-3, axis=1).x
    np.testing.assert_array_equal(on_arrays.batch_norm_grad(GRAD, x, GAMMA, epsilon=1e-3, axis=1, out=out).x, wanted)


def test_out_backwards_over_the_input():
    x = X.copy()
    on_arrays.batch_norm(x, GAMMA, BETA, epsilon=1e-3, axis=1, out=x[:, :, ::-1])
    np.testing.assert_array_equal(x[:, :, ::-1], WANTED)


def test_in_place_where_squares_overflow():
    x = ((X.astype(np.float64) - 3) * 6e37).astype(np.float32)
    wanted = on_arrays.batch_norm(x, epsilon=1e-3, axis=1)[0]
    assert np.isfinite(wanted).all()
    np.testing.assert_array_equal(on_arrays.batch_norm(x, epsilon=1e-3, axis=1, out=x)[0], wanted)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.empty((8, 20, 9, 10), np.float32), ArgumentError, r"out must have the shape \(8, 20, 9, 11\) and dtype"),
        (np.empty(SHAPE), ArgumentError, r"of the result; got \(8, 20, 9, 11\) and float64"),
        (np.frombuffer(X.tobytes(), np.float32).reshape(SHAPE), ArgumentError, "out is read-only"),
        ([1.0], TypeError, "out must be a NumPy array; got list"),
    ],
)
def test_an_out_that_cannot_take_the_result(out, error, message):
    for call in (
        lambda: on_arrays.batch_norm(X, epsilon=1e-3, axis=1, out=out),
        lambda: on_arrays.normalize(X, np.zeros(20), np.ones(20), epsilon=1e-3, axis=1, out=out),
        lambda: on_arrays.batch_norm_grad(GRAD, X, epsilon=1e-3, axis=1, out=out),
    ):
        with pytest.raises(error, match=message):
            call()


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 400])
def test_messages_are_those_of_the_core(size):
    x = np.ones((size, 30), np.float32)
    for call, message in (
        (lambda: on_arrays.batch_norm(x, np.ones(29, np.float32), epsilon=1e-3), r"gamma must have the shape \(30,\)"),
        (lambda: on_arrays.batch_norm(x, epsilon=-1.0), "epsilon must be at least 0; got -1.0"),
        (lambda: on_arrays.batch_norm(x, epsilon=1e-3, axis=2), "axis must be between -2 and 1"),
        (lambda: on_arrays.moments(x, mask=np.zeros(size, bool)), "every position is masked"),
        (lambda: on_arrays.batch_norm_grad(x[:2], x, epsilon=1e-3), "grad must have the shape of x"),
        (lambda: on_arrays.moments(x[:0]), "it is empty"),
    ):
        with pytest.raises(ArgumentError, match=message):
            call()


def test_zero_size():
    assert on_arrays.batch_norm(np.empty((5, 0), np.float32), epsilon=1e-3)[0].shape == (5, 0)
    assert on_arrays.normalize(np.empty((0, 3), np.float32), np.zeros(3), np.ones(3), epsilon=1e-3).shape == (0, 3)


def test_more_than_two_to_the_31_elements_of_a_broadcast_view():
    row = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    x = np.broadcast_to(row, (2**25 + 3, 64))
    assert x.size > 2**31
    batch = on_arrays.moments(x)
    assert batch.count == 2**25 + 3
    np.testing.assert_array_equal(batch.mean, row.astype(np.float64))
    assert not batch.variance.any()


@pytest.mark.parametrize("axis", [1, 2])
def test_elements_further_apart_than_two_to_the_31(axis, tmp_path):
    # A sparse file: only the pages that are touched exist.
    whole = np.memmap(tmp_path / "sparse", np.float32, "w+", shape=(9 * 2**28 + 2**18,))
    x = np.lib.stride_tricks.as_strided(whole, (2, 24, 300), (9 * 2**30, 1200, 4))
    x[...] = np.random.default_rng(0).standard_normal(x.shape)
    assert x.strides[0] // 4 > 2**31
    wanted = on_arrays.batch_norm(x.copy(), epsilon=1e-3, axis=axis)[0]
    # Rows with a gap are added in another order than rows without.
    assert_close(on_arrays.batch_norm(x, epsilon=1e-3, axis=axis, out=x)[0], wanted)


def test_several_python_threads_at_once():
    x = np.concatenate([X] * 20)
    wanted = on_arrays.batch_norm(x, GAMMA, BETA, epsilon=1e-3, axis=1)[0]
    found = []

    def work():
        for _ in range(5):
            y = on_arrays.batch_norm(x, GAMMA, BETA, epsilon=1e-3, axis=1)[0]
            found.append(np.array_equal(y, wanted))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert found == [True] * 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork is a thing of POSIX")
def test_after_a_fork_a_child_runs_on_one_thread(in_subprocess):
    assert sys.platform != "win32"
    out = in_subprocess(
        "import os, warnings, numpy as np, batchnorm as bn\n"
        "from batchnorm.kernels import cpu\n"
        "warnings.simplefilter('ignore')\n"
        "x = np.random.default_rng(0).standard_normal((64, 32, 100)).astype('f4')\n"
        "wanted = bn.batch_norm(x, epsilon=1e-3, axis=1)[0]\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    cpu.set_threads(8)\n"
        "    same = np.array_equal(bn.batch_norm(x, epsilon=1e-3, axis=1)[0], wanted)\n"
        "    os._exit(0 if same and cpu.threads() == 1 else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert out.strip() == "0"


# -- small arrays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "axis"), [((2, 3), -1), ((32, 16), 1), ((4, 8, 5, 4), 1), ((3, 50), 0), ((9,), 0)])
@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_small_arrays_are_computed_as_the_core_does(shape, axis, mean):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) + mean).astype(np.float32)
    gamma, beta = rng.standard_normal((2, shape[axis])).astype(np.float32)
    count = x.size // shape[axis]
    for parameters in ((gamma, beta), (None, beta), (gamma, None), (None, None)):
        y, batch = on_arrays.batch_norm(x, *parameters, epsilon=1e-3, axis=axis)
        wanted_y, wanted = ops.batch_norm(x, *parameters, epsilon=1e-3, axis=axis)
        # Both are within (n + 4) u64 of the exact statistics; outputs then differ by one float32 at most.
        np.testing.assert_allclose(batch.variance, wanted.variance, rtol=2 * (count + 4) * 2.0**-53)
        sd = np.sqrt(wanted.variance)
        bound = 2 * (count + 4) * 2.0**-53 * sd + 2.0**-52 * np.abs(wanted.mean)
        assert np.all(np.abs(batch.mean - wanted.mean) <= bound)
        np.testing.assert_allclose(y, wanted_y, rtol=2.0**-23, atol=1e-14)
        assert (batch.count, y.shape, y.dtype) == (wanted.count, x.shape, x.dtype)


def test_a_small_constant_or_broken_channel():
    x = np.float32([[3e38, np.nan, 1.0], [3e38, 1.0, 2.0], [3e38, 1.0, 3.0]])
    y, batch = on_arrays.batch_norm(x, None, np.float32([7, 8, 9]), epsilon=1e-3)
    assert y[:, 0].tolist() == [7.0] * 3
    assert np.isnan(y[:, 1]).all()
    assert np.isnan(batch.variance[1])
    assert batch.variance[0] == 0.0


def test_bfloat16_is_named():
    assert np.dtype(ml_dtypes.bfloat16).name in cpu.DTYPES


def test_statistics_in_float32_raise_no_warning():
    """The largest variance that the kernels take is no float32: seen warning of an overflow in a cast."""
    x, ones = np.full((2000, 64), 2, np.float32), np.ones(64, np.float32)
    for variance in (ones, ones * np.nan, ones * np.inf):
        on_arrays.normalize(x, ones, variance, ones, ones, epsilon=1e-3)
