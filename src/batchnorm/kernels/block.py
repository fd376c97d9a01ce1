"""What a kernel is told: one block of 64-bit words, by slot.

A kernel is called with a part, the number of parts, and the address of this block. Addresses, lengths and strides (in
elements) are integers; epsilon and its like are float64 in the same words.
"""

from __future__ import annotations

__all__: list[str] = []

PHASE, CHANNELS, OUTER, INNER, LENGTH = range(5)
"""Channels first: planes ``OUTER x INNER``, each of ``LENGTH`` adjacent elements of one channel. Channels last: rows
of ``LENGTH`` columns, ``REPEAT`` adjacent columns a channel, the channels over and over (`Layout.fold`); the last row
has ``TAIL`` columns."""
REPEAT, TAIL = 5, 6
GROUP, SEGMENT, SEGMENTS, UNITS = 7, 8, 9, 10
"""Planes (or rows) and elements of a unit of work; units a plane; units of a channel. They follow from the shape."""
TOGETHER, PITCH, COLUMNS = 11, 12, 13
"""Channels of short planes that are taken together; length of a row of coefficients, by channel and by column."""
BOTH = 58
"""Address of the leaf that writes a channel and sums the next one, or 0: where one is done after the other."""
X, Y, RESIDUAL, GRAD, RESIDUAL_GRAD = 14, 18, 22, 26, 30
"""Each an address and three strides: outer, inner, channel. In the backward pass Y is the gradient of X."""
MASK, FIRST_PLANE, FIRST_INDEX, COUNT = 34, 35, 36, 37
GAMMA, BETA, MEAN, VARIANCE, GAMMA_GRAD, BETA_GRAD = range(38, 44)
"""Addresses. The first four are written in one go, and so is the scratch memory."""
MOVING_MEAN, MOVING_VARIANCE, MOVING_DOUBLE, SKIPPED, GUARD = range(44, 49)
WORK, BY_COLUMN, SUMS, LANES_SUMS = 49, 50, 51, 52
"""Scratch: coefficients by channel and by column; sums in float64; sums in the arithmetic's type, by part."""
EPSILON, DECAY, CORRECTION = 53, 54, 55
TRAINING, AGAIN = 56, 57
"""Whether the statistics are the batch's; set where some channel's sums must be taken again."""
DOUBLE, ELEMENT = 60, 61
"""Whether the arithmetic is float64; the number of the element type in `ELEMENTS`."""
ADD, APPLY, BACKWARD = 59, 62, 63
"""Addresses of the leaves; whether the walk is the way back."""
SLOTS = 64

ELEMENTS = ("float32", "float64", "bfloat16", "float16")

WHOLE, BEGINNING, SUMMING, SETTLING, APPLYING, PREPARING, PLANES = range(7)
"""Phases: everything, a channel at a time; shifts; sums; statistics from sums; the output, backwards; coefficients from
given statistics; the output, in the order of memory."""

HIGH, SCALE, SHIFT, GRAD_SCALE, GRAD_SLOPE, GRAD_SHIFT = range(6)
"""Rows of coefficients: ``z = (x - high)*scale + shift``; ``dx = scale*g + slope*(x - high) + shift``."""
ROWS = 6
