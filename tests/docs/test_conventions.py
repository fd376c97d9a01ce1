"""The table of docs/CONVENTIONS.md is what the layers do: measured again, one process a framework."""

import importlib.util
import pathlib
import sys

import pytest

GENERATOR = pathlib.Path(__file__).parents[2] / "docs" / "conventions.py"


def _load():
    spec = importlib.util.spec_from_file_location("conventions", GENERATOR)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


conventions = _load()
NEEDS = {"numpy": "numpy", "keras": "keras", "torch": "torch", "flax": "flax"}


@pytest.mark.slow
@pytest.mark.parametrize("framework", conventions.FRAMEWORKS)
def test_the_table_is_what_the_layers_do(framework):
    pytest.importorskip(NEEDS[framework])
    lines = conventions.DOCUMENT.read_text().splitlines()
    for line in conventions.lines_of(conventions.rows_of(framework)):
        assert line in lines, "the layers have changed: run `python docs/conventions.py` and read the table"


def test_the_document_has_a_row_for_each_layer_and_no_other():
    _, _, rest = conventions.DOCUMENT.read_text().partition("<!-- table: python docs/conventions.py -->\n")
    names = [line.split("|")[1].strip(" `") for line in rest.partition("<!-- end")[0].splitlines()[2:]]
    assert len(set(names)) == len(names)
    assert {"batchnorm.BatchNormalization", "batchnorm.flax.BatchNorm", "flax.nnx.BatchNorm"} <= set(names)
    assert {"keras.layers.BatchNormalization", "torch.nn.BatchNorm1d"} <= set(names)
