"""The rules about stored numbers, each at its threshold and on the healthy side of it."""

import numpy as np
import pytest

from batchnorm.analysis.rules import RULES, Subject, apply
from tests.analysis.cases import f32, record

FINE = record(name="fine", moving_mean=f32(0.3, 0.1, -0.2, 0.5))


def found(*records, others=()):
    return {(one.rule.code, one.level): one.hit for one in apply(Subject(records=records, others=others))}


def test_a_healthy_layer_has_no_finding():
    assert found(record(), FINE) == {}


@pytest.mark.parametrize("role", ["gamma", "beta", "moving_mean", "moving_variance"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_names_the_array_and_its_channels(role, bad):
    values = np.array(getattr(record(), role))
    values[2] = bad
    hit = found(record(**{role: values}))["BN101", "error"]
    assert (hit.layer, hit.channels) == ("bn", (2,))
    assert role in hit.message
    assert role in hit.evidence
    assert ("recalibrate" in hit.remedy) is (role.startswith("moving"))  # no data give a gamma or beta back
    assert "checkpoint" in hit.remedy


def test_negative_variance_and_swapped_statistics():
    hit = found(record(moving_variance=f32(1, -0.01, 1, 1)))["BN102", "error"]
    assert hit.channels == (1,)
    assert "-0.01" in hit.message
    both = found(record(moving_mean=f32(1, 2, 3, 4), moving_variance=f32(-1, 0.5, -0.2, 0.1)))
    assert both["BN207", "error"].channels == (0, 2)
    assert ("BN207", "error") not in found(record(moving_variance=f32(1, -0.01, 1, 1)))  # a mean is negative, too


def test_epsilon_dominated_is_a_note_for_a_few_and_a_warning_from_a_half():
    assert found(record(moving_variance=f32(1, 1, 1, 0.009)))["BN103", "note"].channels == (3,)
    assert found(record(moving_variance=f32(1, 1, 1, 0.011))) == {}
    assert set(found(record(moving_variance=f32(1, 1, 1, 0.0009)))) == {("BN103", "note")}
    assert found(record(moving_variance=f32(1, 1, 0.0008, 0.0009)))["BN103", "warning"].channels == (2, 3)
    # A channel that never varied is no reason for it.
    assert set(found(record(moving_variance=f32(1, 1, 1, 0)))) == {("BN110", "note")}


def test_a_layer_none_of_whose_channels_ever_varied_is_a_warning():
    for mean in (f32(1, 2, 3, 4), f32(0, 0, 0, 0)):
        hit = found(record(moving_mean=mean, moving_variance=f32(0, 0, 0, 0)))["BN110", "warning"]
        assert hit.channels == (0, 1, 2, 3)
    # Where gamma lets nothing through, it is no matter.
    dead = found(record(gamma=f32(0, 0, 0, 0), moving_variance=f32(0, 0, 0, 0)))
    assert set(dead) == {("BN104", "warning"), ("BN110", "note")}


def test_dead_gamma():
    assert found(record(gamma=f32(1, 1, 1, 1e-4)))["BN104", "note"].channels == (3,)
    assert found(record(gamma=f32(1, 1, 0, 1e-4)))["BN104", "warning"].channels == (2, 3)
    assert found(record(gamma=f32(0, 0, 0, 0)))["BN104", "warning"].channels == (0, 1, 2, 3)
    assert found(record(gamma=f32(0.02, 0.01, 0.03, 0.5))) == {}
    # Beside one that exploded the others are what they were.
    assert set(found(record(gamma=f32(1, 0.5, 0.8, 1e5)))) == {("BN105", "warning")}


def test_exploding_scale_leaves_out_what_other_rules_name():
    hit = found(record(gamma=f32(1, 1, 1, 300)))["BN105", "warning"]
    assert hit.channels == (3,)
    assert found(record(gamma=f32(1, 1, 1, 40))) == {}
    many = record(
        channels=8, gamma=f32(*[2000.0] * 8), beta=None, moving_mean=f32(*[0] * 8), moving_variance=f32(*[1] * 8)
    )
    assert found(many)["BN105", "warning"].channels == tuple(range(8))
    tiny = record(epsilon=1e-12, moving_variance=f32(1, 1, 1, 1e-12), gamma=f32(1, 1, 1, 1))
    assert ("BN105", "warning") not in found(tiny)
    # An infinite variance makes a scale of 0, beside which nothing is large.
    assert ("BN105", "warning") not in found(record(moving_variance=f32(np.inf, np.inf, np.inf, 2)))


def test_never_updated_needs_another_layer_that_was():
    untouched = {"moving_mean": f32(0, 0, 0, 0), "moving_variance": f32(1, 1, 1, 1)}
    alone = found(record(**untouched))
    assert set(alone) == {("BN106", "note")}
    hit = found(record(**untouched), FINE)["BN106", "error"]
    assert hit.layer == "bn"
    assert "fine" in hit.message
    nearly = record(moving_mean=f32(0, 0, 0, 1e-6), moving_variance=f32(1, 1, 1, 1))
    assert found(nearly, FINE) == {}
    # Frozen at its initial values is the other rule's.
    frozen = found(record(**untouched, mode="frozen"), FINE)
    assert set(frozen) == {("BN208", "warning")}


def test_not_converged_says_what_is_missing_and_the_debiased_values():
    stored = 0.99**100 + (1 - 0.99**100) * np.float32([0.5, 0.5, 0.5, 0.5])
    hit = found(record(moving_variance=stored).with_updates(100, "option"))["BN107", "warning"]
    assert hit.evidence["updates_missing"] == 359
    assert hit.evidence["debiased"]["moving_variance"] == pytest.approx(0.5, rel=1e-5)
    late = record().with_updates(1000, "option")
    assert found(late) == {}
    # A mean that the initial 0 holds back, where variances hide it.
    far = record(moving_mean=f32(9, 9, 9, 9), moving_variance=f32(1, 1, 1, 1)).with_updates(400, "option")
    assert set(found(far)) == {("BN107", "warning")}


def test_not_converged_is_measured_by_what_normalises():
    # 3e-6 of the initial 1 is most of such a variance, and next to nothing of variance + epsilon.
    tiny = record(decay=0.9, moving_variance=f32(1, 1, 1e-5, 1e-5)).with_updates(120, "option")
    assert ("BN107", "warning") not in found(tiny)
    assert ("BN107", "warning") in found(tiny.replace(epsilon=1e-7))
    # Where nothing but the initial value's rest is stored, the channel never varied.
    weight = np.float32(0.9**60)
    rest = record(decay=0.9, epsilon=1e-5, moving_variance=f32(1, 2, weight, 1)).with_updates(60, "option")
    assert ("BN107", "warning") not in found(rest.replace(moving_mean=f32(0.1, 0.2, 0, 0.1)))
    assert ("BN107", "warning") in found(rest.replace(moving_variance=f32(1, 2, 2 * weight, 1)))


def test_half_precision():
    half = np.float16
    damaged = record(dtype="float16", moving_variance=half([0, 1, np.inf, 1]))
    assert found(damaged)["BN108", "error"].evidence == {"dtype": "float16", "zero": 1, "infinite": 1}
    assert found(record(dtype="float16", moving_variance=half([1, 1, 2, 1]))) == {}
    assert ("BN108", "note") in found(record(dtype="bfloat16"))
    assert found(record(dtype="bfloat16", mode="inference")) == {}


def test_cancellation():
    hit = found(record(moving_mean=f32(0, 2000, 0, 0), moving_variance=f32(1, 1, 1, 1)))["BN109", "warning"]
    assert hit.channels == (1,)
    assert hit.evidence["error"]["PyTorch"] == pytest.approx(6.8e-9 * 1999 * 0.9, rel=1e-3)
    assert found(record(moving_mean=f32(0, 900, 0, 0), moving_variance=f32(1, 1, 1, 1))) == {}


def test_epsilon_unknown_says_how_far_outputs_move():
    unknown = record(epsilon=None, epsilon_source="unknown", moving_variance=f32(1, 1, 1, 0.01))
    hit = found(unknown)["BN201", "note"]
    # At three standard deviations: 3 * 0.1 * 0.5 * (1/sqrt(0.01001) - 1/sqrt(0.011)).
    assert hit.evidence["max_output_change"] == pytest.approx(0.15 * (0.01001**-0.5 - 0.011**-0.5), rel=1e-3)


@pytest.mark.parametrize(
    ("momentum", "decay", "level"),
    [(0.1, 0.1, "warning"), (0.01, 0.01, "warning"), (0.9, 0.1, "warning"), (0.99, 0.01, "warning")],
)
def test_momentum_of_the_other_convention(momentum, decay, level):
    hit = found(record(momentum=momentum, decay=decay))["BN202", level]
    assert hit.evidence["meant"] == pytest.approx(1 - momentum)
    assert set(found(record(momentum=momentum, decay=decay, mode="inference"))) == {("BN202", "note")}


@pytest.mark.parametrize(
    ("momentum", "decay"), [(0.9, 0.9), (0.1, 0.9), (0.5, 0.5), (0.0, 0.0), (1.0, None), (0.2, 0.8)]
)
def test_usual_momenta(momentum, decay):
    assert found(record(momentum=momentum, decay=decay)) == {}


def test_odd_epsilon():
    assert ("BN206", "warning") in found(record(epsilon=0.5))
    assert ("BN206", "warning") in found(record(epsilon=0.0, moving_variance=f32(1, 1, 1, 1e-6)))
    assert found(record(epsilon=0.0)) == {}
    hit = found(record(), FINE, record(name="other", epsilon=1e-5))["BN206", "note"]
    assert hit.layers == ("other",)
    assert found(record(), record(name="single", epsilon=float(np.float32(1e-3)))) == {}


def test_frozen_beside_live_in_one_part():
    frozen, live = record(name="body/a", mode="frozen"), record(name="body/b")
    assert found(frozen, live, record(name="body/c"))["BN208", "note"].layers == ("body/a",)
    assert found(frozen, record(name="head")) == {}
    assert found(record(name="a", mode="frozen"), record(name="b")) == {}


def test_ranks_that_were_never_merged():
    other = record(moving_mean=f32(0.6, -1, 2, 0))
    hit = found(record(), others=(("rank1.pt", (other,)),))["BN209", "error"]
    assert "rank1.pt" in hit.message
    assert found(record(), others=(("same.pt", (record(),)),)) == {}
    untrained = {"gamma": f32(1, 1, 1, 1), "beta": f32(0, 0, 0, 0)}
    pair = record(**untrained), record(**untrained, moving_mean=f32(0.6, -1, 2, 0))
    assert found(pair[0], others=(("other.pt", (pair[1],)),)) == {}


def test_repeated_notes_are_one_finding_with_a_list():
    layers = [record(name=f"bn{i}", gamma=f32(1, 1, 1, 0)) for i in range(5)]
    hit = found(*layers)["BN104", "note"]
    assert hit.layer is None
    assert hit.layers == tuple(f"bn{i}" for i in range(5))
    assert [one["channels"] for one in hit.evidence["layers"]] == [[3]] * 5


def test_codes_and_names_are_unique_and_in_order():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert [rule.code for rule in RULES] == sorted({rule.code for rule in RULES})
