"""Vectors in memory: loads, stores in and past the caches, and asking for lines ahead of time.

Elements are widened to the arithmetic's type when they are loaded, and rounded when they are stored. What would write
or read beyond an array has a form for some of the lanes.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN202
from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .intrinsics import (
    BYTES,
    ELEMENTS,
    HOST,
    I32,
    I64,
    SIZES,
    X86,
    Vector,
    call_llvm,
    element_at,
    itemsize,
    line,
    pointer,
    spread,
    streams,
    suffix,
)
from .precision import even_and_odd, narrowed, widened

__all__: list[str] = []


@njit(error_model="numpy")
def before_line(spec, address, index, most):
    """Elements before the first address from ``index`` on that a store past the caches may go to, at most so many."""
    return min((-(address // itemsize(spec) + index)) % line(spec), most) if streams(spec) else 0


def _in_memory(spec):
    return ir.VectorType(ELEMENTS[spec.dtype], spec.lanes)


@intrinsic
def load(context, spec, address, index):
    """``lanes`` elements from ``index`` on, widened."""

    def generate(_c, b, sig, args):
        spec = sig.args[0]
        place = element_at(b, args[1], args[2], SIZES[spec.dtype], _in_memory(spec))
        return widened(b, b.load(place, align=SIZES[spec.dtype]), spec)

    return spec.vector(spec, types.int64, types.int64), generate


@intrinsic
def load_some(context, spec, address, index, count):
    """The first ``count`` of them; 0 in the other lanes. Nothing beyond is touched."""

    def generate(_c, b, sig, args):
        spec = sig.args[0]
        kind = _in_memory(spec)
        raw = kind if spec.dtype != "float16" else ir.VectorType(ir.IntType(16), spec.lanes)
        place = element_at(b, args[1], args[2], SIZES[spec.dtype], raw)
        zero = ir.Constant(raw, None)
        name = f"llvm.masked.load.{suffix(raw)}.p0"
        got = call_llvm(b, name, raw, place, I32(SIZES[spec.dtype]), first_of(b, args[3], spec.lanes), zero)
        return widened(b, got if raw is kind else b.bitcast(got, kind), spec)

    return spec.vector(spec, types.int64, types.int64, types.int64), generate


@intrinsic
def store(context, spec, address, index, value):
    """Narrow ``lanes`` numbers and write them from ``index`` on."""

    def generate(c, b, sig, args):
        spec = sig.args[0]
        raw = narrowed(b, args[3], spec)
        b.store(raw, element_at(b, args[1], args[2], SIZES[spec.dtype], raw.type), align=SIZES[spec.dtype])
        return c.get_dummy_value()

    return types.void(spec, types.int64, types.int64, spec.vector), generate


def _opaque(b, value):
    """A register whose origin LLVM forgets: it has no non-temporal store of 16-bit floats and takes a plain one."""
    if not (X86 and "avx512f" in HOST):
        return value
    llvm.initialize_native_asmparser()
    return b.asm(ir.FunctionType(value.type, [value.type]), "", "=v,0", [value], False)


@intrinsic
def store_next(context, spec, address, index, value):
    """As `store_two_past` where the `Spec` says so and a vector is a whole line, else `store`: what pairs leave."""

    def generate(c, b, sig, args):
        spec = sig.args[0]
        raw, whole = narrowed(b, args[3], spec), spec.stream and SIZES[spec.dtype] * spec.lanes == BYTES
        place = element_at(b, args[1], args[2], SIZES[spec.dtype], raw.type)
        done = b.store(raw, place, align=BYTES if whole else SIZES[spec.dtype])
        if whole:
            done.set_metadata("nontemporal", b.module.add_metadata([I32(1)]))
        return c.get_dummy_value()

    return types.void(spec, types.int64, types.int64, spec.vector), generate


def _two(past):
    def typed(context, spec, address, index, first, second):
        def generate(c, b, sig, args):
            spec = sig.args[0]
            raws = [narrowed(b, value, spec) for value in args[3:]]
            size = SIZES[spec.dtype]
            if size * spec.lanes < BYTES:
                words = [b.bitcast(raw, ir.VectorType(I64, 4)) for raw in raws]
                raws = [_opaque(b, b.shuffle_vector(*words, ir.Constant(ir.VectorType(I32, 8), list(range(8)))))]
            for k, raw in enumerate(raws):
                where = element_at(b, args[1], b.add(args[2], I64(k * spec.lanes)), size, raw.type)
                done = b.store(raw, where, align=BYTES if past else size)
                if past:
                    done.set_metadata("nontemporal", b.module.add_metadata([I32(1)]))
            return c.get_dummy_value()

        return types.void(spec, types.int64, types.int64, spec.vector, spec.vector), generate

    return intrinsic(typed)


store_two = _two(False)
"""As `store`, of two vectors: in half precision they are one cache line, written in one piece."""
store_two_past = _two(True)
"""As `store_two`, past the caches (non-temporal), to an address that is a multiple of 64: half a line past the caches
takes as long as a whole one.

For outputs that no cache would hold anyway: a plain store reads each line first. Follow the last with `fence`.
"""


@intrinsic
def load_two(context, spec, address, index):
    """Two vectors of elements, in the order that costs least: for sums. Of bfloat16 the even ones and the odd ones."""

    def generate(c, b, sig, args):
        spec = sig.args[0]
        if spec.dtype == "bfloat16":
            place = element_at(b, args[1], args[2], 2, ir.VectorType(I32, spec.lanes))
            found = even_and_odd(b, b.load(place, align=2), spec.lanes)
        else:
            size = SIZES[spec.dtype]
            places = [
                element_at(b, args[1], b.add(args[2], I64(k * spec.lanes)), size, _in_memory(spec)) for k in (0, 1)
            ]
            found = [widened(b, b.load(place, align=size), spec) for place in places]
        return c.make_tuple(b, sig.return_type, found)

    return types.UniTuple(spec.vector, 2)(spec, types.int64, types.int64), generate


@intrinsic
def store_some(context, spec, address, index, value, count):
    """Write the first ``count`` lanes only."""

    def generate(c, b, sig, args):
        spec = sig.args[0]
        raw = narrowed(b, args[3], spec)
        if spec.dtype == "float16":
            raw = b.bitcast(raw, ir.VectorType(ir.IntType(16), spec.lanes))
        place = element_at(b, args[1], args[2], SIZES[spec.dtype], raw.type)
        name = f"llvm.masked.store.{suffix(raw.type)}.p0"
        call_llvm(b, name, ir.VoidType(), raw, place, I32(SIZES[spec.dtype]), first_of(b, args[4], spec.lanes))
        return c.get_dummy_value()

    return types.void(spec, types.int64, types.int64, spec.vector, types.int64), generate


def first_of(b, count, n):
    """Truth in the first ``count`` of ``n`` lanes."""
    index = ir.Constant(ir.VectorType(I32, n), list(range(n)))
    return b.icmp_signed("<", index, spread(b, b.trunc(count, I32), n))


@intrinsic
def spread_wide(context, spec, address, index):
    """A number of the arithmetic's type, from the kernel's own buffers, in every lane."""

    def generate(_c, b, sig, args):
        kind = sig.args[0].wide
        return spread(b, b.load(element_at(b, args[1], args[2], SIZES[kind], ELEMENTS[kind])), sig.args[0].lanes)

    return spec.vector(spec, types.int64, types.int64), generate


@intrinsic
def load_wide(context, spec, address, index):
    """``lanes`` numbers of the arithmetic's type, from the kernel's own buffers."""

    def generate(_c, b, sig, args):
        kind = sig.args[0].wide
        place = element_at(b, args[1], args[2], SIZES[kind], ir.VectorType(ELEMENTS[kind], sig.args[0].lanes))
        return b.load(place, align=SIZES[kind])

    return spec.vector(spec, types.int64, types.int64), generate


@intrinsic
def store_wide(context, spec, address, index, value):
    """Write them."""

    def generate(c, b, sig, args):
        kind = sig.args[0].wide
        b.store(args[3], element_at(b, args[1], args[2], SIZES[kind], args[3].type), align=SIZES[kind])
        return c.get_dummy_value()

    return types.void(spec, types.int64, types.int64, spec.vector), generate


@intrinsic
def load_flags(context, spec, address, index, count):
    """The first ``count`` bytes of a mask, as lanes of truth; False in the others."""

    def generate(_c, b, sig, args):
        n = sig.args[0].lanes
        kind = ir.VectorType(ir.IntType(8), n)
        place = element_at(b, args[1], args[2], 1, kind)
        zero = ir.Constant(kind, None)
        got = call_llvm(b, f"llvm.masked.load.{suffix(kind)}.p0", kind, place, I32(1), first_of(b, args[3], n), zero)
        return b.icmp_unsigned("!=", got, zero)

    return Vector("bool", spec.lanes)(spec, types.int64, types.int64, types.int64), generate


@intrinsic
def first_lanes(context, spec, count):
    """Truth in the first ``count`` lanes."""

    def generate(_c, b, sig, args):
        return first_of(b, args[1], sig.args[0].lanes)

    return Vector("bool", spec.lanes)(spec, types.int64), generate


@intrinsic
def all_lanes(context, spec, flag):
    """A byte's truth in every lane."""

    def generate(_c, b, sig, args):
        return spread(b, b.icmp_unsigned("!=", args[1], ir.IntType(8)(0)), sig.args[0].lanes)

    return Vector("bool", spec.lanes)(spec, types.uint8), generate


def _prefetching(written, locality):
    def typed(context, address):
        def generate(c, b, _sig, args):
            place = pointer(b, args[0], ir.IntType(8))
            call_llvm(b, "llvm.prefetch.p0", ir.VoidType(), place, I32(written), I32(locality), I32(1))
            return c.get_dummy_value()

        return types.void(types.int64), generate

    return intrinsic(typed)


prefetch = _prefetching(0, 2)
"""Ask for the cache line at an address, for reading; any address is allowed."""
prefetch_to_write = _prefetching(1, 3)
"""Ask for the cache line at an address, which is about to be written; any address is allowed."""


@intrinsic
def fence(context):
    """Let no later store overtake what `store_two_past` wrote."""

    def generate(c, b, _sig, _args):
        if X86:
            call_llvm(b, "llvm.x86.sse.sfence", ir.VoidType())
        return c.get_dummy_value()

    return types.void(), generate
