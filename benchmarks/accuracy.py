"""How far the NumPy operations are from the float64 reference, for mean/sd from 0 to 1e6, every dtype and layout.

    python benchmarks/accuracy.py [--count 4096]

Prints each error with the bound of docs/NUMERICS.md beside it; the exit status is 1 if any is exceeded. The last column
is the relative error of the variance as E[x^2] - E[x]^2 gives it in the same type (float32 for 16 bits), the way of
Keras on PyTorch and NumPy, Flax and Haiku.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from batchnorm.core import equations, reference
from batchnorm.core.dtypes import is_half, unit_roundoff
from batchnorm.core.ops import batch_norm, moments, normalize

U64 = 2.0**-53
EPSILON = 1e-3
CHANNELS = 3
RATIOS = (0.0, 1.0, 1e2, 1e4, 1e6)
SPREAD = 2.0**-5  # keeps a mean of 1e6 standard deviations inside float16
DTYPES: dict[str, Any] = {
    "float16": "float16",
    "bfloat16": ml_dtypes.bfloat16,
    "float32": "float32",
    "float64": "float64",
}
LAYOUTS = {"first": 0, "last": 1}  # the axis of the channels
FLOAT32_BOUND = 5e-7


@dataclass
class Error:
    """The largest error of one quantity, and whether it is within its bound everywhere."""

    size: float
    bound: float
    within: bool

    def __str__(self) -> str:
        """``error <= bound``, with ``>`` where it is not."""
        return f"{self.size:7.1e} {'<=' if self.within else '> '} {self.bound:7.1e}"


def batch(ratio: float, count: int, dtype: str, layout: str) -> np.ndarray:
    """One batch of normal numbers with that ratio of mean to standard deviation."""
    x = (np.random.default_rng(1).standard_normal((count, CHANNELS)) + ratio) * SPREAD
    x = x.astype(DTYPES[dtype])
    return np.ascontiguousarray(x.T) if layout == "first" else x


def spread(values: np.ndarray, axis: int) -> np.ndarray:
    """One number per channel, shaped to broadcast over the batch."""
    return values[:, None] if axis == 0 else values


def statistics_errors(x: np.ndarray, axis: int) -> tuple[Error, Error, float]:
    """Variance relative to itself, mean relative to sd, and the variance error of E[x^2] - E[x]^2."""
    got = moments(x, axis)
    mean, variance = reference.moments(x, axis=axis)
    sd = np.sqrt(variance)
    held = np.where(variance > 0, variance, 1)
    bound = (got.count + 4) * U64
    mean_bound = bound * sd + 2 * U64 * np.abs(mean)
    off, mean_off = np.abs(got.variance - variance), np.abs(got.mean - mean)
    wide = x.astype(np.float32) if is_half(x.dtype) else x
    peers = np.mean(wide * wide, axis=1 - axis) - np.mean(wide, axis=1 - axis) ** 2
    return (
        Error(float(np.max(off / held)), bound, bool(np.all(off <= bound * variance))),
        Error(
            *(float(np.max(one / np.sqrt(held))) for one in (mean_off, mean_bound)),
            bool(np.all(mean_off <= mean_bound)),
        ),
        float(np.max(np.abs(peers - variance) / held)),
    )


def output_error(
    y: np.ndarray, wanted: np.ndarray, count: int, gamma: np.ndarray, beta: np.ndarray, dtype: Any
) -> Error:
    """Error of an output relative to its largest value."""
    x_hat = (wanted - beta) / gamma
    bound = unit_roundoff(dtype) * np.abs(wanted) * (1 + 2 * U64)
    bound = bound + np.abs(gamma) * (count + 8) * U64 * (1 + np.abs(x_hat)) + 4 * U64 * (np.abs(wanted) + np.abs(beta))
    off = np.abs(y.astype(np.float64) - wanted)
    largest = np.max(np.abs(wanted))
    return Error(float(np.max(off) / largest), float(np.max(bound) / largest), bool(np.all(off <= bound)))


def output_errors(x: np.ndarray, axis: int) -> tuple[Error, Error]:
    """Errors of batch_norm (training) and of normalize (inference)."""
    gamma, beta = np.array([1.5, -0.5, 1.0]), np.array([0.25, 0.0, -1.0])
    g, b = spread(gamma, axis), spread(beta, axis)
    y, own = batch_norm(x, gamma, beta, epsilon=EPSILON, axis=axis)
    trained = reference.training(x, gamma, beta, epsilon=EPSILON, axis=axis)
    z = normalize(x, own.mean, own.variance, gamma, beta, epsilon=EPSILON, axis=axis)
    inferred = reference.inference(x, own.mean, own.variance, gamma, beta, epsilon=EPSILON, axis=axis)
    return output_error(y, trained, own.count, g, b, x.dtype), output_error(z, inferred, 0, g, b, x.dtype)


def float32_error(x: np.ndarray, axis: int) -> Error:
    """Error of the equations computed in float32 itself, as the layers of the frameworks do."""
    reduced = (1 - axis,)
    own = equations.moments(np, x, reduced, x.shape[1 - axis], refine=axis == 1)
    y = equations.standardize(x, own.high, own.low, equations.inv_std(np, own.variance, EPSILON))
    wanted = reference.training(x, None, None, epsilon=EPSILON, axis=axis)
    size = float(np.max(np.abs(y - wanted)) / np.max(np.abs(wanted)))
    return Error(size, FLOAT32_BOUND, size <= FLOAT32_BOUND)


def operations_table(count: int) -> bool:
    """Print the errors of the operations; whether all are within their bounds."""
    print(f"The operations, {count} elements a channel: error, and its bound (docs/NUMERICS.md)\n")
    head = ("variance (relative)", "mean (in sd)", "batch_norm y", "normalize y")
    print(f"{'dtype':9s}{'channels':9s}{'mean/sd':>8s}  " + "".join(f"{h:21s}" for h in head) + "E[x^2]-E[x]^2")
    fine = True
    for dtype in DTYPES:
        for layout, axis in LAYOUTS.items():
            for ratio in RATIOS:
                x = batch(ratio, count, dtype, layout)
                *errors, peers = statistics_errors(x, axis)
                errors = [*errors, *output_errors(x, axis)]
                fine &= all(one.within for one in errors)
                print(
                    f"{dtype:9s}{layout:9s}{ratio:8.0e}  " + "".join(f"{one!s:21s}" for one in errors) + f"{peers:.1e}"
                )
    print("\n16-bit types hold a single value of the batches at 1e4 and 1e6: constant channels, counted with sd 1.")
    return fine


def float32_table(count: int) -> bool:
    """Print the errors of the equations in float32; whether all are within the bound."""
    print("\nThe equations in float32 itself, as the layers of the frameworks use them: y relative to max|y|\n")
    fine = True
    for layout, axis in LAYOUTS.items():
        errors = [float32_error(batch(ratio, count, "float32", layout), axis) for ratio in RATIOS]
        fine &= all(one.within for one in errors)
        row = "   ".join(f"{ratio:.0e}: {one}" for ratio, one in zip(RATIOS, errors, strict=True))
        print(f"channels {layout:6s} {row}")
    return fine


def constants_line() -> bool:
    """Print whether a constant channel gives exactly beta."""
    values = (0.0, 100.1, 3.1e7, -1e30)
    exact = all(
        np.all(batch_norm(np.full((1000, 1), v, dtype), None, [0.25], epsilon=EPSILON)[0] == 0.25)
        for v in values
        for dtype in ("float32", "float64")
    )
    print(f"\nConstant channels of {', '.join(f'{v:g}' for v in values)}: {'exactly' if exact else 'NOT'} beta")
    return exact


def main() -> int:
    """Print everything; 1 if a bound is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4096, help="elements a channel")
    count = parser.parse_args().count
    fine = [operations_table(count), float32_table(count), constants_line()]
    print("\nAll within their bounds." if all(fine) else "\nA bound is EXCEEDED.")
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
