"""The examples in docstrings run: one process for what needs no framework, one for each framework."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "batchnorm"
FRAMEWORKS = ("keras", "torch", "flax")
MODULES = sorted(
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
    for path in SOURCE.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
)


def framework_of(module):
    """The framework a layer module imports; readers and engines import theirs only when called."""
    parts = module.split(".")
    if parts[1] != "layers" and len(parts) > 2:
        return None
    return next((name for name in FRAMEWORKS if name in parts), None)


@pytest.mark.parametrize("module", [m for m in MODULES if framework_of(m) is None])
def test_examples(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_examples_of_a_framework(framework, in_subprocess):
    modules = [m for m in MODULES if framework_of(m) == framework]
    if not modules:
        pytest.skip("no such layer")
    in_subprocess(
        "import doctest, importlib\n"
        f"failed = [m for m in {modules} if doctest.testmod(importlib.import_module(m)).failed]\n"
        "assert not failed, failed",
        environment={"KERAS_BACKEND": "jax"},
    )
