"""Why the output is what it is, and what to do: sentences with their numbers, most important first.

Each reason is a function of a `Case` that returns a sentence or None; the tables at the end are their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchnorm.core.record import LayerRecord

from .expected import Reading
from .formula import constants_of
from .numbers import brief, count, digits, listed, percent
from .signs import Sign, initial_share, signs_of

if TYPE_CHECKING:
    from .explain import ChannelExplanation

__all__ = ["Case", "because", "remedies", "updates_until", "verdict"]

GONE = 0.01
"""An initial value that is under 1 % of a moving average no longer shows in four digits of most outputs."""
FAR = 5.0
"""Standard deviations: data does not lie there, so an input that does is of another kind."""
UNLIKE_COUNT = 8
"""Fewer values say too little of an input's mean and spread to compare them with the stored ones."""
UNLIKE_MEAN = 1.0
UNLIKE_SPREAD = 2.0
UNSETTLED = 5.0
"""Early in a training the weights before the layer still move, and with them what its statistics are of."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """What the sentences are about: a layer, its channels worked through, and how they were asked for."""

    record: LayerRecord
    explained: tuple[ChannelExplanation, ...]
    expected: tuple[Reading, ...] | None
    mode: str
    given: bool
    upstream: str | None = None

    @property
    def lead(self) -> ChannelExplanation:
        """The worst channel, or the only one."""
        return self.explained[0]

    @property
    def of_lead(self) -> str:
        """`` of channel 3`` where the layer has several."""
        return f" of channel {self.lead.channel}" if self.record.channels > 1 else ""

    @property
    def in_lead(self) -> str:
        """`` in channel 3`` where the layer has several."""
        return f" in channel {self.lead.channel}" if self.record.channels > 1 else ""

    def sign(self, rule: str) -> Sign | None:
        """The sign of that rule, if the record shows it."""
        return next((sign for sign in signs_of(self.record) if sign.rule == rule), None)


def because(case: Case) -> tuple[str, ...]:
    """Why, most important first."""
    return _collected(REASONS, case)


def remedies(case: Case) -> tuple[str, ...]:
    """What to do about it, most helpful first."""
    return _collected(REMEDIES, case)


def verdict(record: LayerRecord) -> str:
    """One layer in a line: its worst sign, or that there is none."""
    if record.moving_mean is None or record.moving_variance is None:
        return "no moving statistics in the file"
    found = signs_of(record)
    return found[0].text if found else "nothing unusual"


def updates_until(decay: float, share: float = GONE) -> int | None:
    """Updates after which the initial value's share is under ``share``; None where it never is."""
    if not 0 < decay < 1:
        return 1 if decay == 0 else None
    return math.ceil(math.log(share) / math.log(decay))


def _collected(table: tuple[Callable[[Case], str | None], ...], case: Case) -> tuple[str, ...]:
    return tuple(sentence for write in table if (sentence := write(case)) is not None)


# Reasons


def _what_was_expected(case: Case) -> str | None:
    if case.expected is None:
        return None
    fitting = [reading for reading in case.expected if reading.fits]
    if not fitting:
        return (
            "No reading gives the expected values within 1 %: not the batch's, the moving or the debiased statistics, "
            "with or without gamma and beta, divided by count or count - 1, with any common epsilon."
        )
    ways = "; or ".join(f"{reading.reading} ({listed(reading.y)})" for reading in fitting)
    return f"The expected values are what this gives: {ways}."


def _damaged(case: Case) -> str | None:
    signs = [sign for sign in (case.sign("BN101"), case.sign("BN102")) if sign is not None]
    if not signs:
        return None
    found = "; ".join(sign.text for sign in signs)
    return f"The stored numbers are damaged: {found}. There the output is NaN or infinite for every input."


def _input_not_finite(case: Case) -> str | None:
    bad = [value for channel in case.explained for value in channel.values if not math.isfinite(value.x)]
    if not bad or not case.given:
        return None
    return (
        f"The input holds {digits(bad[0].x)}: what goes in as NaN or infinity comes out so, and in training mode it "
        "spoils the mean and variance of its whole channel."
    )


def _no_epsilon(case: Case) -> str | None:
    if case.record.epsilon is not None:
        return None
    texts = [
        f"{value.formula} is {_with_epsilon(case, value.x, 1e-3)} with 0.001 and {_with_epsilon(case, value.x, 1e-5)} "
        "with 0.00001"
        for value in case.lead.values[:1]
    ]
    return f"The file holds no epsilon, so the output is not known to the last digits: {texts[0]}."


def _with_epsilon(case: Case, x: float, epsilon: float) -> str:
    constants = constants_of(case.record.with_epsilon(epsilon), case.lead.channel)
    y = constants.output(x)
    assert y is not None
    return brief(y, 6)


def _never_updated(case: Case) -> str | None:
    if not case.record.untouched():
        return None
    lead = case.lead
    shown = "" if lead.inv_std is None else f": 1 becomes {brief(lead.inv_std)} before gamma and beta"
    root = "sqrt(1 + epsilon)" if lead.epsilon is None else f"sqrt(1 + {digits(lead.epsilon)})"
    return (
        f"The layer was never updated: its statistics are still the initial mean 0 and variance 1, so inference only "
        f"divides by {root}{shown}."
    )


def _which_statistics(case: Case) -> str | None:
    batch, lead = case.lead.batch, case.lead
    if batch is None or lead.moving_mean is None or lead.moving_variance is None:
        return None
    stored = f"mean {brief(lead.moving_mean)} and variance {brief(lead.moving_variance)}{case.of_lead}"
    if case.mode == "training":
        inference = listed(_known(_outputs_with_stored(case)))
        return f"Training mode normalises with this input's own mean and variance; inference would give {inference}."
    first = f"Inference (predict) never sees your batch: it normalises with the stored {stored}."
    if case.record.mode == "frozen":
        return first
    if batch.count == 1:
        return None if case.record.untouched() else f"{first} Training mode on a single value could only give beta."
    if not _known(batch.y):
        return first
    return (
        f"{first} Training mode would take mean {brief(batch.mean)} and variance {brief(batch.variance)} from this "
        f"input and give {listed(_known(batch.y))}{_without_parameters(case)}."
    )


def _without_parameters(case: Case) -> str:
    lead, batch = case.lead, case.lead.batch
    assert batch is not None
    present = [name for name in ("gamma", "beta") if getattr(lead, name) is not None]
    neutral = (lead.gamma is None or lead.gamma == 1) and (lead.beta is None or lead.beta == 0)
    if not present or neutral or lead.epsilon is None:
        return ""
    inverse = 1 / math.sqrt(batch.variance + lead.epsilon)
    plain = [(value.x - batch.mean) * inverse for value in lead.values]
    return f"; without {' and '.join(present)}, {listed(plain)}"


def _outputs_with_stored(case: Case) -> list[float | None]:
    constants = constants_of(case.record, case.lead.channel)
    return [constants.output(value.x) for value in case.lead.values]


def _initial_value_left(case: Case) -> str | None:
    record, weight, shares = case.record, case.record.initial_weight, initial_share(case.record)
    if weight is None or shares is None or not record.updates or record.untouched():
        return None
    start = f"after {count(record.updates, 'update')} at momentum {_pace(record)}"
    if weight < GONE:
        return f"The initial value is gone: {start} {percent(weight)} of it is left in the moving averages."
    share = float(shares[case.lead.channel])
    initial = f"(mean {digits(record.initial_mean or 0.0)}, variance {digits(record.initial_variance or 0.0)})"
    opening = "The moving averages have hardly begun" if weight > 0.5 else "The moving averages still hold their start"
    return (
        f"{opening}: {start} each is still {percent(weight)} its initial value {initial}, which is {percent(share)} of "
        f"the stored variance{case.of_lead}."
    )


def _pace(record: LayerRecord) -> str:
    decay = digits(record.decay or 0.0)
    return decay if record.momentum in (None, record.decay) else f"{digits(record.momentum or 0.0)} (keeps {decay})"


def _without_initial_value(case: Case) -> str | None:
    lead, weight = case.lead, case.record.initial_weight
    if lead.debiased is None or weight is None or weight < GONE or case.record.untouched():
        return None
    without = lead.debiased
    y = _known(without.y)
    gives = f", and the output would be {listed(y)}" if case.given and y else ""
    return (
        f"Without the initial value the statistics{case.of_lead} are mean {brief(without.mean)} and variance "
        f"{brief(without.variance)}{gives}.{_where_training_leads(case)}"
    )


def _where_training_leads(case: Case) -> str:
    lead = case.lead
    if not case.given or lead.debiased is None or not lead.debiased.variance > 0:
        return ""
    sd = math.sqrt(lead.debiased.variance)
    finite = [value.x for value in lead.values if math.isfinite(value.x)]
    z, x = max(((abs(x - lead.debiased.mean) / sd, x) for x in finite), default=(0.0, 0.0))
    if not z > FAR:
        return " More training leads there."
    far = f"{digits(x)} lies {z:.2g} standard deviations from the mean of the training data"
    return f" More training leads there{_not_to(case)}: {far}."


def _not_to(case: Case) -> str:
    wanted = [reading for reading in case.expected or () if reading.fits and reading.reading.startswith("the batch")]
    if wanted:
        return f", not to {listed(round(y, 3) for y in wanted[0].y)}"
    return ", not to the training-mode values" if case.lead.batch is not None and case.lead.batch.count > 1 else ""


def _updates_needed(case: Case) -> str | None:
    record, weight = case.record, case.record.initial_weight
    if weight is None or weight < GONE or record.decay is None or not record.updates or record.untouched():
        return None
    total = updates_until(record.decay)
    if total is None:
        return "At this momentum no number of updates removes the initial value."
    return (
        f"{count(total, 'update')} in all, {total - record.updates} more, would bring the initial value under "
        f"{percent(GONE)} of each moving average."
    )


def _counter_doubted(case: Case) -> str | None:
    if case.record.updates_doubt is None or case.record.untouched():
        return None
    return (
        f"How often the statistics were updated cannot be told ({case.record.updates_doubt}), so neither can how much "
        "of their initial value is left."
    )


def _epsilon_dominates(case: Case) -> str | None:
    lead = case.lead
    if lead.epsilon is None or lead.moving_variance is None or lead.inv_std is None:
        return None
    if not 0 <= lead.moving_variance < 10 * lead.epsilon:
        return None
    small = "far below" if lead.moving_variance < 0.1 * lead.epsilon else "no larger than ten times"
    return (
        f"The variance {brief(lead.moving_variance)}{case.of_lead} is {small} epsilon {digits(lead.epsilon)}: the "
        f"output is (x - mean) times {brief(lead.inv_std)}, set by epsilon, and its spread is not 1 but "
        f"{brief(math.sqrt(lead.moving_variance) * lead.inv_std)}."
    )


def _input_unlike(case: Case) -> str | None:
    lead, batch = case.lead, case.lead.batch
    if batch is None or batch.count < UNLIKE_COUNT or case.record.untouched():
        return None
    if lead.moving_mean is None or lead.moving_variance is None or not batch.variance >= 0:
        return None
    mean, variance = lead.moving_mean, lead.moving_variance
    if lead.debiased is not None and lead.debiased.variance > 0:
        mean, variance = lead.debiased.mean, lead.debiased.variance
    sd = math.sqrt(max(variance, 0.0) + (lead.epsilon or 0.0))
    if not sd > 0:
        return None
    z, ratio = abs(batch.mean - mean) / sd, math.sqrt(batch.variance + (lead.epsilon or 0.0)) / sd
    weight = case.record.initial_weight
    slack = UNSETTLED if weight is not None and weight > GONE else 1.0
    if z <= slack * UNLIKE_MEAN and 1 / UNLIKE_SPREAD <= ratio * slack and ratio <= slack * UNLIKE_SPREAD:
        return None
    upstream = f" It comes through {case.upstream}, where inference already differs." if case.upstream else ""
    return (
        f"This input is not like the data behind the statistics{case.of_lead}: its mean {brief(batch.mean)} lies "
        f"{brief(z, 3)} standard deviations from {brief(mean)}, and its spread is {brief(ratio, 3)} times theirs."
        f"{upstream}"
    )


def _absent_parameters(case: Case) -> str | None:
    missing = [
        text
        for name, text in (("gamma", "no gamma (it counts as 1)"), ("beta", "no beta (it counts as 0)"))
        if getattr(case.lead, name) is None
    ]
    return f"The layer has {' and '.join(missing)}." if missing else None


def _frozen(case: Case) -> str | None:
    if case.record.mode != "frozen":
        return None
    return "The layer is frozen: training mode, too, takes the stored statistics and changes nothing."


def _skewed_graph(case: Case) -> str | None:
    if case.record.mode != "training":
        return None
    return "The model fixes training mode for this layer: it normalises with each batch, whatever the caller asks for."


# Remedies


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
    return f'{how} gives {values}{case.in_lead}{negative}. A layer with statistics="debiased" does so by itself.'


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
    return (
        "Go back to a checkpoint from before the damage, or estimate the statistics anew from data; then look for the "
        "batch that brought it (a NaN in the input, an overflow in half precision)."
    )


def _give_epsilon(case: Case) -> str | None:
    if case.record.epsilon is not None:
        return None
    return "Pass the epsilon the model was built with: --eps 0.001 is Keras' default, --eps 0.00001 PyTorch's."


def _give_updates(case: Case) -> str | None:
    if case.record.updates_doubt is None or case.record.untouched() or case.record.mode == "frozen":
        return None
    return "Pass the number of updates with --updates, if you know it."


def _same_input(case: Case) -> str | None:
    if case.upstream is not None or _input_unlike(case) is None:
        return None
    return (
        "Feed the model as in training: the same scaling (0 to 1, or 0 to 255?), the same channel order, the same mean "
        "subtracted."
    )


def _mind_the_scale(case: Case) -> str | None:
    if _epsilon_dominates(case) is None:
        return None
    return (
        "If many channels are like this, the layer's input is too small for this epsilon: is it scaled twice? A single "
        "one is a feature that hardly ever varies."
    )


def _known(values: tuple[float | None, ...] | list[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


REASONS: tuple[Callable[[Case], str | None], ...] = (
    _what_was_expected,
    _damaged,
    _input_not_finite,
    _never_updated,
    _skewed_graph,
    _which_statistics,
    _initial_value_left,
    _without_initial_value,
    _updates_needed,
    _counter_doubted,
    _epsilon_dominates,
    _input_unlike,
    _no_epsilon,
    _frozen,
    _absent_parameters,
)

REMEDIES: tuple[Callable[[Case], str | None], ...] = (
    _restore,
    _start_training,
    _same_input,
    _use_the_batch,
    _train_longer,
    _lower_momentum,
    _take_it_out,
    _give_epsilon,
    _give_updates,
    _mind_the_scale,
)
