"""Recalibration of Keras models, each backend in its own process."""

import pytest

CODE = "import sys, runpy; sys.argv = ['x', {0!r}, *{1!r}]; runpy.run_path('{2}', run_name='__main__')"
SCRIPT = "tests/api/scripts/recalibrate_keras.py"


@pytest.mark.parametrize(
    ("backend", "cases"),
    [("jax", ()), ("tensorflow", ("live", "masked", "padded")), ("torch", ("live", "masked", "padded"))],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_keras(in_subprocess, tmp_path, backend, cases):
    out = in_subprocess(CODE.format(str(tmp_path), cases, SCRIPT), environment={"KERAS_BACKEND": backend})
    assert len(out.split()) >= (len(cases) or 8)
