"""Why the output is what it is: sentences with their numbers, most important first.

Each reason is a function of a `Case` that returns a sentence or None; `REASONS` is their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from batchnorm.core.record import LayerRecord

from .case import GONE, Case, collected, epsilon_dominates, unlike, updates_until
from .formula import constants_of
from .numbers import brief, count, digits, listed, percent
from .signs import initial_share, signs_of

__all__ = ["because", "verdict"]

FAR = 5.0
"""Standard deviations: data does not lie there, so an input that does is of another kind."""


def because(case: Case) -> tuple[str, ...]:
    """Why, most important first."""
    return collected(REASONS, case) or (_verdict_alone(case),)


def verdict(record: LayerRecord) -> str:
    """One layer in a line: its worst sign, or that there is none."""
    if record.moving_mean is None or record.moving_variance is None:
        own = "; each batch is normalised by its own" if record.mode == "batch-statistics" else ""
        return f"no moving statistics in the file{own}"
    found = signs_of(record)
    return found[0].text if found else "nothing unusual"


def _verdict_alone(case: Case) -> str:
    record, lead = case.record, case.lead
    if record.moving_mean is None or record.moving_variance is None:
        return "The file holds no moving statistics; training mode normalises with this input's own."
    found = signs_of(record)
    if found:
        return f"What shows in the stored numbers: {found[0].text}."
    stored = f"mean {brief(lead.moving_mean or 0.0)} and variance {brief(lead.moving_variance or 0.0)}{case.of_lead}"
    return f"Nothing is unusual: inference (predict) normalises with the stored {stored}."


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
    if case.record.recalibrated is not None:
        return f"The statistics were recalibrated ({case.record.recalibrated}): nothing of an initial value is in them."
    if case.record.updates_doubt is None or case.record.untouched():
        return None
    return (
        f"How often the statistics were updated cannot be told ({case.record.updates_doubt}), so neither can how much "
        "of their initial value is left."
    )


def _epsilon_dominates(case: Case) -> str | None:
    lead = case.lead
    if not epsilon_dominates(case) or lead.moving_variance is None or lead.epsilon is None or lead.inv_std is None:
        return None
    small = "far below" if lead.moving_variance < 0.1 * lead.epsilon else "no larger than ten times"
    return (
        f"The variance {brief(lead.moving_variance)}{case.of_lead} is {small} epsilon {digits(lead.epsilon)}: the "
        f"output is (x - mean) times {brief(lead.inv_std)}, set by epsilon, and its spread is not 1 but "
        f"{brief(math.sqrt(lead.moving_variance) * lead.inv_std)}."
    )


def _input_unlike(case: Case) -> str | None:
    found, batch = unlike(case), case.lead.batch
    if found is None or batch is None:
        return None
    upstream = f" It comes through {case.upstream}, where inference already differs." if case.upstream else ""
    return (
        f"This input is not like the data behind the statistics{case.of_lead}: its mean {brief(batch.mean)} lies "
        f"{brief(found.distance, 3)} standard deviations from {brief(found.stored_mean)}, and its spread is "
        f"{brief(found.ratio, 3)} times theirs.{upstream}"
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
