"""Half precision: elements to the arithmetic's type and back, as LLVM's instructions.

The arithmetic is float32 for float32, bfloat16 and float16, and float64 for float64.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202
from __future__ import annotations

from llvmlite import ir

from .intrinsics import HOST, I32, X86, constants

__all__ = ["even_and_odd", "narrowed", "widened"]


class _BFloat(ir.Type):
    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def widened(b, raw, spec):
    """Elements as they lie in memory, to the arithmetic's type."""
    if spec.dtype == "float16":
        return b.fpext(raw, ir.VectorType(ir.FloatType(), spec.lanes))
    if spec.dtype == "bfloat16":
        words = ir.VectorType(I32, spec.lanes)
        return b.bitcast(
            b.shl(b.zext(raw, words), constants(I32(16), words)), ir.VectorType(ir.FloatType(), spec.lanes)
        )
    return raw


def narrowed(b, value, spec):
    """The other way: round to nearest, ties to even."""
    if spec.dtype == "float16":
        return b.fptrunc(value, ir.VectorType(ir.HalfType(), spec.lanes))
    if spec.dtype == "bfloat16":
        return _to_bfloat16(b, value, spec.lanes)
    return value


def _to_bfloat16(b, value, n):
    if X86 and "avx512bf16" in HOST:
        return b.bitcast(b.fptrunc(value, ir.VectorType(_BFloat(), n)), ir.VectorType(ir.IntType(16), n))
    words = ir.VectorType(I32, n)
    bits = b.bitcast(value, words)
    odd = b.and_(b.lshr(bits, constants(16, words)), constants(1, words))
    nearest = b.add(b.add(bits, odd), constants(0x7FFF, words))
    quiet = b.or_(bits, constants(0x400000, words))  # adding to a NaN's bits could make it an infinity
    chosen = b.select(b.fcmp_unordered("uno", value, value), quiet, nearest)
    return b.trunc(b.lshr(chosen, constants(16, words)), ir.VectorType(ir.IntType(16), n))


def even_and_odd(b, words, n):
    """Pairs of bfloat16, as the integers they are in memory, to two vectors of float32."""
    kind = ir.VectorType(ir.FloatType(), n)
    halves = b.shl(words, constants(16, words.type)), b.and_(words, constants(-65536, words.type))
    return [b.bitcast(each, kind) for each in halves]
