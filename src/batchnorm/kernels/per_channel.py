"""Vectors of one number a channel: float64 and the arithmetic's type, loaded and stored in part, and what they need.

Statistics are settled in float64. `like`, `root` and `choose` take a float64 or a vector of them, so that an equation
of `settle` is written once for one channel and for many.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import vectors
from .intrinsics import ELEMENTS, I32, SIZES, Vector, call_llvm, element_at, spread, suffix
from .memory import first_of

__all__ = [
    "all_true",
    "any_true",
    "choose",
    "doubled",
    "like",
    "load_double_some",
    "load_wide_some",
    "root",
    "singled",
    "store_double_some",
    "store_wide_some",
    "zeros",
]

choose = vectors.select
"""``choose(condition, a, b)``: of scalars as of vectors."""


@intrinsic
def like(context, shape, value):
    """A float64 as it is, or in every lane where ``shape`` is a vector of float64."""

    def generate(_c, b, sig, args):
        return spread(b, args[1], sig.args[0].lanes) if isinstance(sig.args[0], Vector) else args[1]

    return shape(shape, types.float64), generate


@intrinsic
def root(context, value):
    """The square root of a float64, or of each lane."""

    def generate(_c, b, sig, args):
        name = "llvm.sqrt" if isinstance(sig.args[0], Vector) else "llvm.sqrt.f64"
        return call_llvm(b, name, args[0].type, args[0])

    return value(value), generate


def _lanes(sign, wanted):
    def typed(context, condition):
        def generate(_c, b, sig, args):
            bits = ir.IntType(sig.args[0].lanes)
            return b.icmp_unsigned(sign, b.bitcast(args[0], bits), bits(wanted))

        return types.boolean(condition), generate

    return intrinsic(typed)


any_true = _lanes("!=", 0)
"""Whether a condition is true in some lane."""
all_true = _lanes("==", -1)
"""Whether it is true in each."""


@intrinsic
def zeros(context, spec):
    """Zeros in float64: where sums begin."""

    def generate(_c, _b, sig, _args):
        return ir.Constant(ir.VectorType(ir.DoubleType(), sig.args[0].lanes), None)

    return Vector("float64", spec.lanes)(spec), generate


@intrinsic
def doubled(context, spec, value):
    """A vector of the arithmetic's type in float64."""

    def generate(_c, b, sig, args):
        kind = ir.VectorType(ir.DoubleType(), sig.args[0].lanes)
        return args[1] if sig.args[0].wide == "float64" else b.fpext(args[1], kind)

    return Vector("float64", spec.lanes)(spec, value), generate


@intrinsic
def singled(context, spec, value):
    """A vector of float64, rounded to the arithmetic's type."""

    def generate(_c, b, sig, args):
        kind = ir.VectorType(ir.FloatType(), sig.args[0].lanes)
        return args[1] if sig.args[0].wide == "float64" else b.fptrunc(args[1], kind)

    return spec.vector(spec, value), generate


def _some(element):
    """A load and a store of the first ``count`` lanes; ``element`` names the type of the numbers, by the `Spec`."""

    def load_typed(context, spec, address, index, count):
        def generate(_c, b, sig, args):
            name = element(sig.args[0])
            kind = ir.VectorType(ELEMENTS[name], sig.args[0].lanes)
            place, inside = element_at(b, args[1], args[2], SIZES[name], kind), first_of(b, args[3], kind.count)
            called, zero = f"llvm.masked.load.{suffix(kind)}.p0", ir.Constant(kind, None)
            return call_llvm(b, called, kind, place, I32(SIZES[name]), inside, zero)

        return Vector(element(spec), spec.lanes)(spec, types.int64, types.int64, types.int64), generate

    def store_typed(context, spec, address, index, value, count):
        def generate(c, b, sig, args):
            name, kind = element(sig.args[0]), args[3].type
            place, inside = element_at(b, args[1], args[2], SIZES[name], kind), first_of(b, args[4], kind.count)
            called = f"llvm.masked.store.{suffix(kind)}.p0"
            call_llvm(b, called, ir.VoidType(), args[3], place, I32(SIZES[name]), inside)
            return c.get_dummy_value()

        given = Vector(element(spec), spec.lanes)
        return types.void(spec, types.int64, types.int64, given, types.int64), generate

    return intrinsic(load_typed), intrinsic(store_typed)


load_wide_some, store_wide_some = _some(lambda spec: spec.wide)
"""The first ``count`` numbers of the arithmetic's type, from ``index`` on; 0 in the other lanes."""
load_double_some, store_double_some = _some(lambda spec: "float64")
"""The same of float64."""
