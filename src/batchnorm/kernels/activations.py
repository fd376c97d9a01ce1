"""Activations on vectors, and what their derivative lets through.

``activate(spec, z)`` and ``slope(spec, z)`` are chosen by the activation of the `Spec`, when a kernel is compiled. They
hold the conventions of the layers: a NaN stays one, and the derivative at a kink is that of its left side.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

import math

from llvmlite import ir
from numba.extending import intrinsic, overload

from .intrinsics import call_llvm
from .vectors import both, select, splat

__all__ = ["ACTIVATIONS", "activate", "slope"]

ACTIVATIONS = ("identity", "relu", "relu6", "leaky_relu", "silu")


def activate(spec, z):
    """The activation of ``z``."""
    raise NotImplementedError("compiled code only")


def slope(spec, z):
    """Its derivative at ``z``."""
    raise NotImplementedError("compiled code only")


@overload(activate)
def _activate(spec, z):
    return {
        "identity": lambda spec, z: z,
        "relu": lambda spec, z: select(z < splat(spec, 0.0), splat(spec, 0.0), z),
        "relu6": _relu6,
        "leaky_relu": lambda spec, z: select(z < splat(spec, 0.0), splat(spec, 0.01) * z, z),
        "silu": lambda spec, z: z / (splat(spec, 1.0) + exp(splat(spec, 0.0) - z)),
    }[spec.activation]


@overload(slope)
def _slope(spec, z):
    return {
        "identity": lambda spec, z: splat(spec, 1.0),
        "relu": lambda spec, z: select(z > splat(spec, 0.0), splat(spec, 1.0), splat(spec, 0.0)),
        "relu6": _relu6_slope,
        "leaky_relu": lambda spec, z: select(z > splat(spec, 0.0), splat(spec, 1.0), splat(spec, 0.01)),
        "silu": _silu_slope,
    }[spec.activation]


def _relu6(spec, z):
    positive = select(z < splat(spec, 0.0), splat(spec, 0.0), z)
    return select(positive > splat(spec, 6.0), splat(spec, 6.0), positive)


def _relu6_slope(spec, z):
    return select(both(z > splat(spec, 0.0), z < splat(spec, 6.0)), splat(spec, 1.0), splat(spec, 0.0))


def _silu_slope(spec, z):
    one = splat(spec, 1.0)
    share = one / (one + exp(splat(spec, 0.0) - z))
    return share * (one + z * (one - share))


LIMITS = {"float32": 88.0, "float64": 709.0}
TERMS = {"float32": 8, "float64": 14}
MAGIC = {"float32": 1.5 * 2.0**23, "float64": 1.5 * 2.0**52}
"""Added, it leaves the nearest integer in the low bits of the mantissa."""
LN2_HIGH = {"float32": 0.693359375, "float64": 0.6931471803691238}
"""ln 2 in few enough bits that n times it is exact; the rest is `LN2_LOW`."""
LN2_LOW = {"float32": -2.12194440054690583e-4, "float64": 1.9082149292705877e-10}


@intrinsic
def exp(context, x):
    """``e**x`` to about two roundings, clipped at the largest finite power.

    ``x = n ln 2 + r`` with ``abs(r) <= ln(2)/2``; Taylor's polynomial of r (the first term left out is under
    1e-8 in float32, 1e-17 in float64), times ``2**n``.
    """

    def generate(_c, b, sig, args):
        kind, of = args[0].type, sig.args[0].element

        def number(value):
            return ir.Constant(kind, [value] * kind.count)

        def fused(p, q, r):
            return call_llvm(b, "llvm.fma", kind, p, q, r)

        x = args[0]
        for sign, limit in (("<", -LIMITS[of]), (">", LIMITS[of])):
            x = b.select(b.fcmp_ordered(sign, x, number(limit)), number(limit), x)
        shifted = fused(x, number(1 / math.log(2)), number(MAGIC[of]))
        n = b.fsub(shifted, number(MAGIC[of]))
        r = fused(n, number(-LN2_LOW[of]), fused(n, number(-LN2_HIGH[of]), x))
        value = number(1 / math.factorial(TERMS[of] - 1))
        for k in reversed(range(TERMS[of] - 1)):
            value = fused(value, r, number(1 / math.factorial(k)))
        word, bits, bias = (ir.IntType(32), 23, 127) if of == "float32" else (ir.IntType(64), 52, 1023)
        words = ir.VectorType(word, kind.count)
        biased = b.add(b.bitcast(shifted, words), ir.Constant(words, [bias] * kind.count))
        return b.fmul(value, b.bitcast(b.shl(biased, ir.Constant(words, [bits] * kind.count)), kind))

    return x(x), generate
