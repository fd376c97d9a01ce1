"""Activations on vectors, and their derivatives, chosen by the `Spec` when a kernel is compiled.

They hold the conventions of the layers: a NaN stays one, and the derivative at a kink is that of its left side.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

import math

from llvmlite import ir
from numba.extending import intrinsic

from .intrinsics import call_llvm

__all__ = ["ACTIVATIONS", "activate", "before_activation"]


def _all(like, value):
    return ir.Constant(like.type, [float(value)] * like.type.count)


def _relu(b, z):
    return b.select(b.fcmp_ordered("<", z, _all(z, 0)), _all(z, 0), z)


def _relu_slope(b, z):
    return b.select(b.fcmp_ordered(">", z, _all(z, 0)), _all(z, 1), _all(z, 0))


def _relu6(b, z):
    positive = _relu(b, z)
    return b.select(b.fcmp_ordered(">", positive, _all(z, 6)), _all(z, 6), positive)


def _relu6_slope(b, z):
    return b.select(b.fcmp_ordered("<", z, _all(z, 6)), _relu_slope(b, z), _all(z, 0))


def _leaky(b, z):
    return b.select(b.fcmp_ordered("<", z, _all(z, 0)), b.fmul(z, _all(z, 0.01)), z)


def _leaky_slope(b, z):
    return b.select(b.fcmp_ordered(">", z, _all(z, 0)), _all(z, 1), _all(z, 0.01))


def _sigmoid(b, z):
    return b.fdiv(_all(z, 1), b.fadd(_all(z, 1), exp(b, b.fsub(_all(z, 0), z))))


def _silu(b, z):
    return b.fmul(z, _sigmoid(b, z))


def _silu_slope(b, z):
    share = _sigmoid(b, z)
    return b.fmul(share, b.fadd(_all(z, 1), b.fmul(z, b.fsub(_all(z, 1), share))))


ACTIVATIONS = {
    "identity": (lambda b, z: z, lambda b, z: _all(z, 1)),
    "relu": (_relu, _relu_slope),
    "relu6": (_relu6, _relu6_slope),
    "leaky_relu": (_leaky, _leaky_slope),
    "silu": (_silu, _silu_slope),
}
"""By name: what writes the instructions of the function, and of its derivative."""

# By the type of the arithmetic, float and double.
LIMITS = {"float": (-88.0, 89.0), "double": (-709.0, 710.0)}
"""Where the power of two is 0, and where it is infinite."""
TERMS = {"float": 8, "double": 14}
LN2_HIGH = {"float": 0.693359375, "double": 0.6931471803691238}
"""ln 2 in few enough bits that n times it is exact; the rest is `LN2_LOW`."""
LN2_LOW = {"float": -2.12194440054690583e-4, "double": 1.9082149292705877e-10}
MAGIC = {"float": 1.5 * 2.0**23, "double": 1.5 * 2.0**52}
"""Added, it leaves the nearest integer in the low bits of the mantissa."""


def exp(b, x):
    """``e**x`` to about two roundings; infinity from about the largest finite power on.

    ``x = n ln 2 + r`` with ``abs(r) <= ln(2)/2``; Taylor's polynomial of r (the first term left out is under
    1e-8 in float32, 1e-17 in float64), times ``2**n``, whose bits are written.
    """
    kind, of = x.type, str(x.type.element)

    def fused(p, q, r):
        return call_llvm(b, "llvm.fma", kind, p, q, r)

    for sign, limit in zip("<>", LIMITS[of], strict=True):
        x = b.select(b.fcmp_ordered(sign, x, _all(x, limit)), _all(x, limit), x)
    shifted = fused(x, _all(x, 1 / math.log(2)), _all(x, MAGIC[of]))
    n = b.fsub(shifted, _all(x, MAGIC[of]))
    r = fused(n, _all(x, -LN2_LOW[of]), fused(n, _all(x, -LN2_HIGH[of]), x))
    value = _all(x, 1 / math.factorial(TERMS[of] - 1))
    for k in reversed(range(TERMS[of] - 1)):
        value = fused(value, r, _all(x, 1 / math.factorial(k)))
    word, bits, bias = (ir.IntType(32), 23, 127) if of == "float" else (ir.IntType(64), 52, 1023)
    words = ir.VectorType(word, kind.count)
    biased = b.add(b.bitcast(shifted, words), ir.Constant(words, [bias] * kind.count))
    return b.fmul(value, b.bitcast(b.shl(biased, ir.Constant(words, [bits] * kind.count)), kind))


@intrinsic
def activate(context, spec, z):
    """The activation of ``z``."""
    return z(spec, z), lambda _c, b, sig, args: ACTIVATIONS[sig.args[0].activation][0](b, args[1])


@intrinsic
def before_activation(context, spec, g, d, scale, shift, r):
    """The gradient before the activation: ``g * slope((x - high)*scale + shift + residual)``."""

    def generate(_c, b, sig, args):
        spec, (_, g, d, scale, shift, r) = sig.args[0], args
        if spec.activation == "identity":
            return g
        z = call_llvm(b, "llvm.fma", d.type, d, scale, shift)
        z = b.fadd(z, r) if spec.residual else z
        return b.fmul(g, ACTIVATIONS[spec.activation][1](b, z))

    return g(spec, g, d, scale, shift, r), generate
