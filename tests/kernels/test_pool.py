"""Large buffers: used again, bounded, given back, and NumPy's own where the pool is off."""

import gc

import numpy as np
import pytest

from batchnorm.kernels import pool

SHAPE, FLOAT32 = (pool.BIG // 4 // 64, 64), np.dtype(np.float32)


@pytest.fixture(autouse=True)
def _emptied():
    gc.collect()
    pool.clear()
    yield
    pool.clear()


def test_memory_is_used_again_once_nothing_refers_to_it():
    first = pool.allocate(SHAPE, FLOAT32)
    assert (first.shape, first.dtype, first.flags.c_contiguous) == (SHAPE, FLOAT32, True)
    where = first.ctypes.data
    row = first[3, 5:]
    del first
    assert pool.kept() == 0  # a view still refers to it
    assert pool.allocate(SHAPE, FLOAT32).ctypes.data != where
    pool.clear()
    del row
    assert pool.kept() >= pool.BIG
    assert pool.allocate(SHAPE, FLOAT32).ctypes.data == where


def test_small_arrays_are_numpys_own():
    small = pool.allocate((10, 10), FLOAT32)
    assert small.base is None
    del small
    assert pool.kept() == 0


def test_a_much_larger_buffer_is_not_taken_for_a_smaller_one():
    large = pool.allocate((4 * SHAPE[0], 64), FLOAT32)
    del large
    before = pool.kept()
    small = pool.allocate(SHAPE, FLOAT32)
    assert pool.kept() == before
    del small


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(pool, "LIMIT", 3 * pool.BIG)
    several = [pool.allocate(SHAPE, FLOAT32) for _ in range(5)]
    assert len({one.ctypes.data for one in several}) == 5
    del several
    assert 0 < pool.kept() <= 3 * pool.BIG
    pool.clear()
    assert pool.kept() == 0


def test_arrays_begin_on_huge_pages_and_are_written_freely():
    one = pool.allocate(SHAPE, np.dtype(np.float64))
    assert one.ctypes.data % pool.HUGE_PAGE == 0
    one[...] = 7.0
    assert one.sum() == 7.0 * one.size


def test_the_switch(in_subprocess):
    code = (
        "import numpy as np; from batchnorm.kernels import pool; "
        "one = pool.allocate((pool.BIG,), np.dtype(np.uint8)); print(one.base is None, pool.LIMIT)"
    )
    assert in_subprocess(code, environment={"BATCHNORM_POOL": "0"}).split() == ["True", str(2**30)]
    assert in_subprocess(code, environment={"BATCHNORM_POOL_BYTES": "5"}).split() == ["False", "5"]
