"""What to do about it: sentences, most helpful first.

Each remedy is a function of a `Case` that returns a sentence or None; `REMEDIES` is their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .case import GONE, Case, collected, epsilon_dominates, unlike, updates_until
from .numbers import brief, count, digits
from .rules.values import BACK

__all__ = ["remedies"]


def remedies(case: Case) -> tuple[str, ...]:
    """What to do about it, most helpful first."""
    return collected(REMEDIES, case)


def _use_the_batch(case: Case) -> str | None:
    wanted = case.expected is not None and any(r.fits and r.reading.startswith("the batch") for r in case.expected)
    if not wanted or case.mode == "training":
        return None
    return (
        "To normalise each batch by itself, call the layer with training=True (Keras) or in train() mode (PyTorch), "
        "with gamma 1 and beta 0; predict and eval() never do. One fixed data set is better normalised beforehand."
    )


def _train_longer(case: Case) -> str | None:
    record, weight = case.record, case.record.initial_weight
    if weight is None or weight < GONE or record.decay is None or not record.updates or record.untouched():
        return None
    total = updates_until(record.decay)
    if total is None:
        return "Choose a momentum below 1."
    return (
        f"Train for {total - record.updates} more updates; or run training data through the model in training mode "
        "without an optimizer step: each batch is one update."
    )


def _recalibrate(case: Case) -> str | None:
    weight = case.record.initial_weight
    if weight is None or weight < GONE or not case.record.updates or case.record.untouched():
        return None
    return (
        "With data like that of the training, estimate the statistics anew: batchnorm recalibrate MODEL --data FILE "
        "-o OUT. batchnorm check MODEL --data FILE says first how far training and inference part."
    )


def _lower_momentum(case: Case) -> str | None:
    record, weight = case.record, case.record.initial_weight
    if weight is None or weight < GONE or not record.updates or record.untouched():
        return None
    enough = math.floor(1000 * GONE ** (1 / record.updates)) / 1000
    spelled = enough if record.momentum in (None, record.decay) else round(1 - enough, 3)
    return (
        f"For so short a training choose another momentum: {digits(spelled)} forgets the initial value within "
        f"{count(record.updates, 'update')}."
    )


def _take_it_out(case: Case) -> str | None:
    lead, weight = case.lead, case.record.initial_weight
    if lead.debiased is None or weight is None or weight < GONE or case.record.untouched():
        return None
    how = f"Or take the initial value out: (moving - {brief(weight)}*initial)/(1 - {brief(weight)})"
    values = f"moving_mean {brief(lead.debiased.mean)}, moving_variance {brief(lead.debiased.variance)}"
    negative = "" if lead.debiased.variance >= 0 else " (a negative variance: the counter cannot be right)"
    command = "batchnorm recalibrate MODEL --debias -o OUT"
    return f'{how} gives {values}{case.in_lead}{negative}: {command}. Layers with statistics="debiased" never hold it.'


def _start_training(case: Case) -> str | None:
    if not case.record.untouched():
        return None
    return (
        "Train the model, or load trained weights. If it was trained: was the layer frozen, or called with "
        "training=False all along?"
    )


def _restore(case: Case) -> str | None:
    if case.sign("BN101") is None and case.sign("BN102") is None:
        return None
    trained = [each for each in (case.record.gamma, case.record.beta) if each is not None]
    if not all(np.all(np.isfinite(each)) for each in trained):
        return f"{BACK} Then look for the batch that brought it (a NaN in the input, an overflow in half precision)."
    return (
        "Go back to a checkpoint from before the damage, or estimate the statistics anew from data: batchnorm "
        "recalibrate MODEL --data FILE -o OUT. Then look for the batch that brought it (a NaN in the input, an "
        "overflow in half precision)."
    )


def _give_epsilon(case: Case) -> str | None:
    if case.record.epsilon is not None:
        return None
    return "Pass the epsilon the model was built with: --eps 0.001 is Keras' default, --eps 0.00001 PyTorch's."


def _give_updates(case: Case) -> str | None:
    if case.record.recalibrated is not None or case.record.mode == "frozen":
        return None
    if case.record.updates_doubt is None or case.record.untouched():
        return None
    return "Pass the number of updates with --updates, if you know it."


def _same_input(case: Case) -> str | None:
    if case.upstream is not None or unlike(case) is None:
        return None
    return (
        "Feed the model as in training: the same scaling (0 to 1, or 0 to 255?), the same channel order, the same mean "
        "subtracted."
    )


def _mind_the_scale(case: Case) -> str | None:
    if not epsilon_dominates(case):
        return None
    return (
        "If many channels are like this, the layer's input is too small for this epsilon: is it scaled twice? A single "
        "one is a feature that hardly ever varies."
    )


REMEDIES: tuple[Callable[[Case], str | None], ...] = (
    _restore,
    _start_training,
    _same_input,
    _use_the_batch,
    _recalibrate,
    _train_longer,
    _lower_momentum,
    _take_it_out,
    _give_epsilon,
    _give_updates,
    _mind_the_scale,
)
