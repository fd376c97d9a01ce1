"""The benchmark suite itself: what it calls right, how it makes ratios, and that its processes take turns."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from speed import cases, data, plot, runner, summary, tables
from speed.cases import Case

from batchnorm.core import reference

SMALL = Case((4, 5, 3, 3), "last")


@pytest.mark.parametrize("operation", cases.OPERATIONS)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_what_it_calls_right_is_the_reference(operation, layout):
    case = Case((4, 5, 3, 3), layout, operation=operation)
    x, grad, _, gamma, beta, mean, variance = given = data.make(case)
    options = {"epsilon": data.EPSILON, "axis": case.axis}
    exact = {
        "forward": lambda: reference.training(x, gamma, beta, **options),
        "backward": lambda: reference.backward(grad, x, gamma, **options)[0],
        "inference": lambda: reference.inference(x, mean, variance, gamma, beta, **options),
    }[operation]()
    assert data.error(case, given, exact) < 1e-13  # float64, 36 terms
    off = exact.copy()
    off[..., 0] *= 1.001
    off[:, 0] *= 1.001
    assert data.error(case, given, off) > 1e-4


def test_an_activated_sum_is_right_too():
    case = Case((4, 5, 3, 3), fused="add+relu")
    given = data.make(case)
    z = reference.training(given.x, given.gamma, given.beta, epsilon=data.EPSILON, axis=1) + given.residual
    assert data.error(case, given, np.maximum(z, 0)) < 1e-13
    assert data.error(case, given, z) > 0.1


def test_ratios_are_taken_within_a_round():
    timing = runner.Timing(SMALL, 2, {"ours": [1.0, 10.0, 1.0], "copy": [0.5, 5.0, 0.5], "copy:past": [1.0, 4.0, 1.0]})
    timing.seconds["torch_eager"] = [3.0, 30.0, 3.3]
    assert summary.times_faster(timing, "ours", "torch_eager").median == 3.0
    assert summary.roof(timing) == [0.5, 4.0, 0.5]
    assert summary.share_of_roof(timing, "ours").median == 0.5


def test_the_bytes_that_must_be_touched():
    assert [Case((2, 3), fused=f).passes for f in cases.FUSED] == [2, 2, 3]
    assert [Case((2, 3), fused=f, operation="backward").passes for f in cases.FUSED] == [3, 3, 5]


def test_every_combination_is_in_the_matrix_and_no_case_twice():
    chosen = cases.long()
    assert len(chosen) == len(set(chosen))
    assert set(cases.short()) <= set(chosen)
    assert set(chosen) <= set(cases.everything())
    crossed = [case for case in chosen if case.shape == cases.CROSSED[0]]
    assert len(crossed) == 2 * 3 * 3 * 3 * 2
    assert {case.shape for case in chosen} == {shape for shapes in cases.SHAPES.values() for shape in shapes}


def test_cases_on_the_same_data_follow_each_other():
    of = [cases.data_of(case) for case in cases.table()]
    assert sum(a != b for a, b in itertools.pairwise(of)) == len(set(of)) - 1


def test_no_case_is_begun_when_the_time_is_over(tmp_path):
    said = []
    plan = runner.Plan([SMALL, Case((4, 6, 3, 3))], ["numpy_core"], (1,), 1, 0.001, minutes=1e-9)
    timings, _ = runner.run(plan, tmp_path / "log", said.append)
    assert timings == []
    assert "2 cases left out" in said[0]


def test_a_run_of_two_engines(tmp_path):
    plan = runner.Plan([Case((4, 5, 3, 3), buffers="allocated")], ["numpy_core", "onnx_runtime"], (1,), 3, 0.001)
    (timing,), versions = runner.run(plan, tmp_path / "log", lambda line: None)
    assert len(timing.seconds["numpy_core"]) == 3
    assert timing.errors["numpy_core"] <= 2.0**-24  # one rounding
    assert timing.absent == {"onnx_runtime": "inference only"}
    assert versions["numpy"] == np.__version__
    timing.seconds["copy"] = [1e-6] * 3
    assert "batchnorm on NumPy alone" in "\n".join(tables.tables([timing]))
    assert plot.svg([timing]).count("<circle") == 2  # its dot, and the one in the legend
    assert summary.document([timing], {}, versions, {})["results"][0]["case"] == plan.cases[0].as_dict()
