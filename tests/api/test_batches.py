"""Data in batches: cut or given, each sample checked; labels beside them, and which answers are right."""

import numpy as np
import pytest

from batchnorm.api.batches import Batches
from batchnorm.api.labels import Answers
from batchnorm.errors import ArgumentError

X = np.arange(14, dtype="f4").reshape(7, 2)
NAN = X.copy()
NAN[[1, 5], 0] = np.nan, np.inf


def taken(data, size=3, labels=None, **more):
    return list(Batches(data, size, labels, who="who", **more))


def test_what_is_given_comes_out_in_its_order():
    streams = [X, {"a": X, "b": X}, [X[:3], X[3:]], lambda: iter([X[:4], X[4:]]), ((x, None) for x in (X[:1], X[1:]))]
    for data in streams:
        found = taken(data)
        arrays = [batch.inputs["a"] if isinstance(batch.inputs, dict) else batch.inputs for batch in found]
        np.testing.assert_array_equal(np.concatenate(arrays), X)
        assert [batch.start for batch in found] == np.cumsum([0, *(len(each) for each in arrays)])[:-1].tolist()
    assert [batch.inputs.tolist() for batch in taken([[1.0], [2, 3.0]])] == [[1.0], [2.0, 3.0]]  # numbers, no labels
    (batch,) = taken([([X, X[:, :1]], range(7))])
    assert [each.shape for each in batch.inputs] == [(7, 2), (7, 1)]
    assert batch.labels.tolist() == list(range(7))
    assert [batch.samples for batch in taken(X)] == [3, 3, 1]
    assert [batch.samples for batch in taken(X, pairs=True)] == [3, 4]


def test_samples_that_are_not_finite_are_named_skipped_or_kept():
    labels = np.arange(7)
    for data in (NAN, [NAN[:4], NAN[4:]], [{"a": NAN[:4]}, {"a": NAN[4:]}]):
        with pytest.raises(ArgumentError, match=r"who: data holds a NaN or an infinity in sample 1, counted"):
            taken(data, 3)
        assert sum(batch.samples for batch in taken(data, nonfinite="keep")) == 7
        source = Batches(data, 4, who="who", nonfinite="skip")
        kept = [batch.inputs["a"] if isinstance(batch.inputs, dict) else batch.inputs for batch in source]
        np.testing.assert_array_equal(np.concatenate(kept), X[[0, 2, 3, 4, 6]])
        assert source.skipped == 2
    with pytest.raises(ArgumentError, match=r"samples 1, 5, counted from 0.*--skip-nonfinite \(skip_nonfinite=True\)"):
        taken(NAN, 7)
    many = np.full((9, 2), np.nan, "f4")
    with pytest.raises(ArgumentError, match="samples 0, 1, 2, 3, 4 and 4 more of its batch"):
        taken(many, 9)
    with pytest.raises(ArgumentError, match="no sample of the data is finite"):
        taken(many, 9, nonfinite="skip")
    found = taken(NAN, 7, labels, nonfinite="skip")
    assert found[0].labels.tolist() == [0, 2, 3, 4, 6]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (X[:0], "no sample. Give"),
        ([], "no sample. Give"),
        (3, "iterable of batches; got a int"),
        ("text", "got a str"),
        ({"a": X, "b": X[:2]}, r"same number of samples, batch first; got a \(7, 2\), b \(2, 2\)"),
        ([()], "a batch without an input"),
        (np.array(["a", "b"]), "real numbers; got dtype <U1"),
        ([[[[1.0, 2.0], [3.0]]]], "regular array of numbers"),
    ],
)
def test_what_is_no_data(data, words):
    with pytest.raises(ArgumentError, match=f"who: data.*{words}|who: all inputs.*{words}"):
        taken(data)


@pytest.mark.parametrize(
    ("data", "labels", "words"),
    [
        (X, np.zeros(6), r"labels must hold one for each of 7 samples; got shape \(6,\)"),
        (X, 1, r"got shape \(\)"),
        (X, ["a"] * 7, "labels must hold real numbers"),
        ([X], np.zeros(7), r"brings its own, as tuples \(x, labels\)"),
    ],
)
def test_labels_that_do_not_go_with_the_data(data, labels, words):
    with pytest.raises(ArgumentError, match=words):
        taken(data, labels=labels)


def test_what_lies_beside_a_batch_and_is_no_label():
    for beside in (None, {"a": 1}, "text", np.zeros(6), [["ragged"], [1, 2]], np.array(["a"] * 7)):
        assert taken([(X, beside)])[0].labels is None


SCORES = np.array([[0.1, 0.9, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0], [3.0, 0.0, 0.0]])
IMAGES = np.moveaxis(SCORES.reshape(1, 2, 2, 3), -1, 1)  # channels first


@pytest.mark.parametrize(
    ("outputs", "labels", "right"),
    [
        (SCORES, [1, 0, 0, 0], [1, 1, 0, 1]),
        (SCORES, [[1], [0], [0], [0]], [1, 1, 0, 1]),
        (SCORES, [1.0, 0.0, 0.0, 0.0], [1, 1, 0, 1]),
        (SCORES, np.eye(3)[[1, 0, 0, 0]], [1, 1, 0, 1]),
        ({"logits": SCORES, "hidden": SCORES}, [1, 1, 2, 0], [1, 0, 1, 1]),
        ([SCORES[:, :1], SCORES], [1, 2, 2, 0], [1, 0, 1, 1]),
        (IMAGES, [[[1, 0], [255, 0]]], [1, 1, 1]),  # a position that is no class is left out
        (IMAGES.transpose(0, 2, 3, 1), [[[1, 0], [-100, 0]]], [1, 1, 1]),
        (np.array([[0.2], [0.8]]), [0, 1], [1, 1]),
        (np.array([-2.0, 0.3]), [[0], [0]], [1, 0]),
        (SCORES, SCORES, None),  # a regression's targets are no one-hot rows
        (SCORES, [0.5, 1, 1, 1], None),
        (np.array([[0.2], [0.8]]), [3, 1], None),
        (SCORES.astype(int), [1, 0, 0, 0], None),
    ],
)
def test_right_answers(outputs, labels, right):
    answers = Answers("who")
    assert answers.add(outputs, np.asarray(labels), 0) is (right is not None)
    assert Answers.share(answers.sums) == (None if right is None else sum(right) / len(right))


def test_single_numbers_are_read_as_one_over_all_batches():
    """A batch of logits can lie between 0 and 1 by chance; the rest of the data tells what it is."""
    answers = Answers("who")
    for outputs, labels in ([0.3, 0.4], [1, 1]), ([-2.0, 3.0], [0, 1]), ([0.2], [1]):
        assert answers.add(np.array(outputs), np.array(labels), 0)
    assert answers.sums == (5, 2, 5, 1)
    assert Answers.share(answers.sums) == 1
    answers = Answers("who")
    for outputs, labels in ([0.3, 0.4], [0, 0]), ([0.2, 0.9], [0, 1]):
        answers.add(np.array(outputs), np.array(labels), 0)
    assert Answers.share(answers.sums) == 1


def test_a_label_that_is_no_class_is_named():
    with pytest.raises(ArgumentError, match=r"who: the label of sample 42.* is 3; the model has 3 classes, 0 to 2"):
        Answers("who").add(SCORES, np.array([1, 0, 3, -1]), 40)
