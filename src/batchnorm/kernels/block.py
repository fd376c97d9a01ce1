"""What a kernel is told: one block of 64-bit words, by slot.

A kernel is called with a part, the number of parts, and the address of this block. Addresses, lengths and strides (in
elements) are integers; epsilon and its like are float64 in the same words.
"""

from __future__ import annotations

__all__: list[str] = []

PHASE = 0
CHANNELS = 1
"""Channels; in the channels-last kernels, `WIDTH` columns belong to them."""
OUTER, INNER, LENGTH = 2, 3, 4
"""Channels first: planes ``OUTER x INNER``, each of ``LENGTH`` adjacent elements. Channels last: rows."""
GROUP, SEGMENT, SEGMENTS, UNITS = 5, 6, 7, 8
"""Planes (or rows) and elements of a unit of work; units a plane; units in all. They depend on the shape alone."""
X, Y, RESIDUAL, GRAD, RESIDUAL_GRAD = 10, 14, 18, 22, 26
"""Each an address and three strides: outer, inner, channel."""
MASK, GAMMA, BETA, MEAN, VARIANCE = 30, 31, 32, 33, 34
MOVING_MEAN, MOVING_VARIANCE, MOVING_DOUBLE, SKIPPED, GUARD = 35, 36, 37, 38, 39
WORK, SUMS, COUNT, FIRST_PLANE, FIRST_INDEX = 40, 41, 42, 43, 44
EPSILON, DECAY, CORRECTION = 45, 46, 47
GAMMA_GRAD, BETA_GRAD = 48, 49
WIDTH, REPEAT, BLOCK_CHANNELS = 50, 51, 52
"""Channels last: columns of a row, adjacent columns of one channel."""
SLOTS = 56

WHOLE, SUMMING, SETTLING, APPLYING, PREPARING, PLANES = range(6)
"""Phases."""
