"""Arithmetic on vectors: operators, fused multiply-add, selection, and sums in float64.

``a + b``, ``a - b``, ``a * b``, ``a / b``, ``<`` and ``>`` work on `intrinsics.Vector` in compiled code; `fma` rounds
once.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_builtin, type_callable

from .intrinsics import Vector, call_llvm, spread

__all__ = [
    "add_to",
    "counted",
    "fma",
    "load_sums",
    "select",
    "splat",
    "store_sums",
]


def _operator(name, result, generate):
    @type_callable(name)
    def typer(context):
        def typed(a, b):
            return result(a) if isinstance(a, Vector) and a == b else None

        return typed

    @lower_builtin(name, Vector, Vector)
    def lower(context, builder, sig, args):
        return generate(builder, *args)


def _same(vector):
    return vector


def _truth(vector):
    return Vector("bool", vector.lanes)


_operator(operator.add, _same, lambda b, x, y: b.fadd(x, y))
_operator(operator.sub, _same, lambda b, x, y: b.fsub(x, y))
_operator(operator.mul, _same, lambda b, x, y: b.fmul(x, y))
_operator(operator.truediv, _same, lambda b, x, y: b.fdiv(x, y))
_operator(operator.lt, _truth, lambda b, x, y: b.fcmp_ordered("<", x, y))
_operator(operator.eq, _truth, lambda b, x, y: b.fcmp_ordered("==", x, y))
_operator(operator.gt, _truth, lambda b, x, y: b.fcmp_ordered(">", x, y))


@intrinsic
def fma(context, a, b, c):
    """``a * b + c``, rounded once."""

    def generate(_c, builder, _sig, args):
        return call_llvm(builder, "llvm.fma", args[0].type, *args)

    return a(a, a, a), generate


@intrinsic
def select(context, condition, a, b):
    """``a`` where the condition is true, ``b`` elsewhere; neither takes part where it is not chosen."""
    return a(condition, a, a), lambda _c, builder, _sig, args: builder.select(*args)


@intrinsic
def counted(context, flags, g, d):
    """``d`` where the flag is true; elsewhere 0 if ``g`` is 0: what is in ignored padding (a NaN, say) stays there."""

    def generate(_c, builder, _sig, args):
        nothing = ir.Constant(args[2].type, None)
        ignored = builder.select(builder.fcmp_ordered("==", args[1], nothing), nothing, args[2])
        return builder.select(args[0], args[2], ignored)

    return d(flags, g, d), generate


@intrinsic
def splat(context, spec, value):
    """A float64, rounded to the arithmetic's type, in every lane."""

    def generate(_c, builder, sig, args):
        kind = sig.args[0]
        value = args[1] if kind.wide == "float64" else builder.fptrunc(args[1], ir.FloatType())
        return spread(builder, value, kind.lanes)

    return spec.vector(spec, types.float64), generate


@intrinsic
def add_to(context, sums, value):
    """``sums + value`` in float64, lane by lane."""

    def generate(_c, builder, _sig, args):
        wide = args[1] if args[1].type == args[0].type else builder.fpext(args[1], args[0].type)
        return builder.fadd(args[0], wide)

    return sums(sums, value), generate


@intrinsic
def load_sums(context, spec, address, index):
    """``lanes`` float64 from ``index`` on."""

    def generate(_c, b, sig, args):
        kind = ir.VectorType(ir.DoubleType(), sig.args[0].lanes)
        where = b.add(args[1], b.mul(args[2], ir.IntType(64)(8)))
        return b.load(b.inttoptr(where, kind.as_pointer()), align=8)

    return Vector("float64", spec.lanes)(spec, types.int64, types.int64), generate


@intrinsic
def store_sums(context, spec, address, index, value):
    """Write them."""

    def generate(c, b, _sig, args):
        where = b.add(args[1], b.mul(args[2], ir.IntType(64)(8)))
        b.store(args[3], b.inttoptr(where, args[3].type.as_pointer()), align=8)
        return c.get_dummy_value()

    return types.void(spec, types.int64, types.int64, Vector("float64", spec.lanes)), generate
