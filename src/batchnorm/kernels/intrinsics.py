"""The machine's words for the kernels: vectors, conversions, stores that bypass the caches, prefetch.

Numba has no vector type; these are LLVM's own, so they exist on every processor: what the hardware lacks is split into
smaller registers. Kernels work on addresses (64-bit integers) and element indices. What a kernel is compiled for, its
element type, activation and options, is the *type* of its last argument, a `Spec`: a variant is compiled when it is
first used, once for all threads, and cached on disk.

Elements are widened to the arithmetic's type when they are loaded: float32 for float32, bfloat16 and float16, float64
for float64. Nothing here is compiled with fast-math flags: sums are in the order they are written in.
"""

# Numba's decorators are untyped, and what they wrap is checked by Numba, not as Python.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportPrivateImportUsage=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN002, ANN201, ANN202, ANN204
from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

__all__ = ["HOST", "Spec", "Vector", "call_llvm", "has_float16", "spread"]

HOST = frozenset(name for name, there in llvm.get_host_cpu_features().items() if there)
"""What LLVM says that this processor can do."""
X86 = llvm.get_process_triple().startswith(("x86_64", "amd64"))
ELEMENTS: dict[str, Any] = {
    "float64": ir.DoubleType(),
    "float32": ir.FloatType(),
    "float16": ir.HalfType(),
    "bfloat16": ir.IntType(16),
    "int32": ir.IntType(32),
    "bool": ir.IntType(1),
}
SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
BYTES = 64
"""Of a vector of the arithmetic's type: a cache line, and the widest register there is."""
AHEAD = 8192
"""Bytes between what is read from memory and what is asked for: the processor itself stops at the end of each 4096, and
reads a seventh faster with this."""
I64 = ir.IntType(64)
I32 = ir.IntType(32)


class _BFloat(ir.Type):
    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def has_float16() -> bool:
    """Whether the processor converts float16; elsewhere LLVM would call a library that may not be there."""
    return not X86 or "f16c" in HOST


class Vector(types.Type):
    """``lanes`` numbers in one register (or several)."""

    def __init__(self, element: str, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(name=f"Vector({element} x {lanes})")


class Spec(types.Type):
    """What a kernel is compiled for.

    ``dtype`` of the elements in memory; ``activation`` by name; whether there is a ``residual``, a ``mask``, and
    whether the output is written past the caches (``stream``). ``source`` tells one version of this package's kernels
    from another in the cache on disk.
    """

    def __init__(self, dtype: str, activation: str, residual: bool, mask: bool, stream: bool, source: int) -> None:
        self.dtype, self.activation = dtype, activation
        self.residual, self.mask, self.stream, self.source = residual, mask, stream, source
        self.wide = "float64" if dtype == "float64" else "float32"
        self.lanes = BYTES // SIZES[self.wide]
        super().__init__(name=f"Spec({dtype},{activation},{residual},{mask},{stream},{source})")

    @property
    def vector(self) -> Vector:
        """A vector of the arithmetic's type."""
        return Vector(self.wide, self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, ir.VectorType(ELEMENTS[fe_type.element], fe_type.lanes))


register_model(Spec)(models.OpaqueModel)


# -- what the Spec says, as constants ------------------------------------------------------------------------------


def _constant(read, kind, ll):
    def typed(context, spec):
        return kind(spec), lambda _c, _b, sig, _a: ll(read(sig.args[0]))

    return intrinsic(typed)


lanes = _constant(lambda spec: spec.lanes, types.int64, I64)
itemsize = _constant(lambda spec: SIZES[spec.dtype], types.int64, I64)
widesize = _constant(lambda spec: SIZES[spec.wide], types.int64, I64)
ahead = _constant(lambda spec: AHEAD // SIZES[spec.dtype], types.int64, I64)
lines = _constant(lambda spec: max(1, BYTES // (SIZES[spec.dtype] * spec.lanes)), types.int64, I64)
is_double = _constant(lambda spec: spec.wide == "float64", types.boolean, ir.IntType(1))
has_activation = _constant(lambda spec: spec.activation != "identity", types.boolean, ir.IntType(1))
has_residual = _constant(lambda spec: spec.residual, types.boolean, ir.IntType(1))
has_mask = _constant(lambda spec: spec.mask, types.boolean, ir.IntType(1))
streams = _constant(lambda spec: spec.stream, types.boolean, ir.IntType(1))


# -- scalars at an address -----------------------------------------------------------------------------------------


def _pointer(b, address, to):
    return b.inttoptr(address, to.as_pointer())


def _element(b, address, index, size, to):
    return _pointer(b, b.add(address, b.mul(index, I64(size))), to)


def _peek(kind, ll, size):
    def typed(context, address, index):
        def generate(_c, b, _sig, args):
            return b.load(_element(b, args[0], args[1], size, ll))

        return kind(types.int64, types.int64), generate

    return intrinsic(typed)


def _poke(kind, ll, size):
    def typed(context, address, index, value):
        def generate(c, b, _sig, args):
            b.store(args[2], _element(b, args[0], args[1], size, ll))
            return c.get_dummy_value()

        return types.void(types.int64, types.int64, kind), generate

    return intrinsic(typed)


get_int = _peek(types.int64, I64, 8)
get_byte = _peek(types.uint8, ir.IntType(8), 1)
get_double = _peek(types.float64, ir.DoubleType(), 8)
get_float = _peek(types.float32, ir.FloatType(), 4)
put_float = _poke(types.float32, ir.FloatType(), 4)
put_int = _poke(types.int64, I64, 8)
put_double = _poke(types.float64, ir.DoubleType(), 8)


def _peek_half(name):
    def typed(context, address, index):
        def generate(_c, b, _sig, args):
            if name == "float16" and not has_float16():  # such arrays never come here, but the code must link
                return ir.Constant(ir.FloatType(), float("nan"))
            value = b.load(_element(b, args[0], args[1], 2, ELEMENTS[name]))
            if name == "bfloat16":
                value = b.bitcast(b.shl(b.zext(value, I32), I32(16)), ir.FloatType())
            return value if name == "bfloat16" else b.fpext(value, ir.FloatType())

        return types.float32(types.int64, types.int64), generate

    return intrinsic(typed)


get_short = _peek_half("bfloat16")
get_half = _peek_half("float16")


# -- vectors in memory ---------------------------------------------------------------------------------------------


def spread(b, value, n):
    """A scalar in each of ``n`` lanes."""
    kind = ir.VectorType(value.type, n)
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(I32, n), [0] * n))


def call_llvm(b, name, result, *args):
    """Call one of LLVM's functions; without a type in its name, that of the first argument is added."""
    if name.count(".") == 1:
        name = f"{name}.{_suffix(args[0].type)}"
    function = cgutils.get_or_insert_function(b.module, ir.FunctionType(result, [a.type for a in args]), name)
    return b.call(function, args)


def _suffix(kind):
    names = {"double": "f64", "float": "f32", "half": "f16"}
    return f"v{kind.count}{names.get(str(kind.element), str(kind.element))}"


def _widened(b, raw, spec):
    """Elements as they lie in memory, to the arithmetic's type."""
    if spec.dtype == "float16":
        return b.fpext(raw, ir.VectorType(ir.FloatType(), spec.lanes))
    if spec.dtype == "bfloat16":
        words = ir.VectorType(I32, spec.lanes)
        return b.bitcast(b.shl(b.zext(raw, words), _all(I32(16), words)), ir.VectorType(ir.FloatType(), spec.lanes))
    return raw


def _narrowed(b, value, spec):
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
    odd = b.and_(b.lshr(bits, _all(16, words)), _all(1, words))
    nearest = b.add(b.add(bits, odd), _all(0x7FFF, words))
    quiet = b.or_(bits, _all(0x400000, words))  # adding to a NaN's bits could make it an infinity
    chosen = b.select(b.fcmp_unordered("uno", value, value), quiet, nearest)
    return b.trunc(b.lshr(chosen, _all(16, words)), ir.VectorType(ir.IntType(16), n))


def _all(number, kind):
    return ir.Constant(kind, [number] * kind.count)


def _in_memory(spec):
    return ir.VectorType(ELEMENTS[spec.dtype], spec.lanes)


@intrinsic
def load(context, spec, address, index):
    """``lanes`` elements from ``index`` on, widened."""

    def generate(_c, b, sig, args):
        spec = sig.args[0]
        pointer = _element(b, args[1], args[2], SIZES[spec.dtype], _in_memory(spec))
        return _widened(b, b.load(pointer, align=SIZES[spec.dtype]), spec)

    return spec.vector(spec, types.int64, types.int64), generate


@intrinsic
def load_some(context, spec, address, index, count):
    """The first ``count`` of them; 0 in the other lanes. Nothing beyond is touched."""

    def generate(_c, b, sig, args):
        spec = sig.args[0]
        kind = _in_memory(spec)
        raw = kind if spec.dtype != "float16" else ir.VectorType(ir.IntType(16), spec.lanes)
        pointer = _element(b, args[1], args[2], SIZES[spec.dtype], raw)
        zero = ir.Constant(raw, None)
        name = f"llvm.masked.load.{_suffix(raw)}.p0"
        got = call_llvm(b, name, raw, pointer, I32(SIZES[spec.dtype]), _first(b, args[3], spec.lanes), zero)
        return _widened(b, got if raw is kind else b.bitcast(got, kind), spec)

    return spec.vector(spec, types.int64, types.int64, types.int64), generate


@intrinsic
def store(context, spec, address, index, value):
    """Narrow ``lanes`` numbers and write them from ``index`` on."""

    def generate(c, b, sig, args):
        spec = sig.args[0]
        raw = _narrowed(b, args[3], spec)
        b.store(raw, _element(b, args[1], args[2], SIZES[spec.dtype], raw.type), align=SIZES[spec.dtype])
        return c.get_dummy_value()

    return types.void(spec, types.int64, types.int64, spec.vector), generate


@intrinsic
def store_past(context, spec, address, index, value):
    """As `store`, past the caches (non-temporal): the address must be a multiple of the vector's bytes in memory.

    For outputs that no cache would hold anyway: a plain store reads each line first. Follow the last with `fence`.
    """

    def generate(c, b, sig, args):
        spec = sig.args[0]
        raw = _narrowed(b, args[3], spec)
        pointer = _element(b, args[1], args[2], SIZES[spec.dtype], raw.type)
        done = b.store(raw, pointer, align=SIZES[spec.dtype] * spec.lanes)
        done.set_metadata("nontemporal", b.module.add_metadata([I32(1)]))
        return c.get_dummy_value()

    return types.void(spec, types.int64, types.int64, spec.vector), generate


@intrinsic
def store_some(context, spec, address, index, value, count):
    """Write the first ``count`` lanes only."""

    def generate(c, b, sig, args):
        spec = sig.args[0]
        raw = _narrowed(b, args[3], spec)
        if spec.dtype == "float16":
            raw = b.bitcast(raw, ir.VectorType(ir.IntType(16), spec.lanes))
        pointer = _element(b, args[1], args[2], SIZES[spec.dtype], raw.type)
        name = f"llvm.masked.store.{_suffix(raw.type)}.p0"
        call_llvm(b, name, ir.VoidType(), raw, pointer, I32(SIZES[spec.dtype]), _first(b, args[4], spec.lanes))
        return c.get_dummy_value()

    return types.void(spec, types.int64, types.int64, spec.vector, types.int64), generate


def _first(b, count, n):
    index = ir.Constant(ir.VectorType(I32, n), list(range(n)))
    return b.icmp_signed("<", index, spread(b, b.trunc(count, I32), n))


@intrinsic
def spread_wide(context, spec, address, index):
    """A number of the arithmetic's type, from the kernel's own buffers, in every lane."""

    def generate(_c, b, sig, args):
        kind = sig.args[0].wide
        return spread(b, b.load(_element(b, args[1], args[2], SIZES[kind], ELEMENTS[kind])), sig.args[0].lanes)

    return spec.vector(spec, types.int64, types.int64), generate


@intrinsic
def load_wide(context, spec, address, index):
    """``lanes`` numbers of the arithmetic's type, from the kernel's own buffers."""

    def generate(_c, b, sig, args):
        kind = sig.args[0].wide
        pointer = _element(b, args[1], args[2], SIZES[kind], ir.VectorType(ELEMENTS[kind], sig.args[0].lanes))
        return b.load(pointer, align=SIZES[kind])

    return spec.vector(spec, types.int64, types.int64), generate


@intrinsic
def store_wide(context, spec, address, index, value):
    """Write them."""

    def generate(c, b, sig, args):
        kind = sig.args[0].wide
        b.store(args[3], _element(b, args[1], args[2], SIZES[kind], args[3].type), align=SIZES[kind])
        return c.get_dummy_value()

    return types.void(spec, types.int64, types.int64, spec.vector), generate


@intrinsic
def load_flags(context, spec, address, index, count):
    """The first ``count`` bytes of a mask, as lanes of truth; False in the others."""

    def generate(_c, b, sig, args):
        n = sig.args[0].lanes
        kind = ir.VectorType(ir.IntType(8), n)
        pointer = _element(b, args[1], args[2], 1, kind)
        zero = ir.Constant(kind, None)
        got = call_llvm(b, f"llvm.masked.load.{_suffix(kind)}.p0", kind, pointer, I32(1), _first(b, args[3], n), zero)
        return b.icmp_unsigned("!=", got, zero)

    return Vector("bool", spec.lanes)(spec, types.int64, types.int64, types.int64), generate


@intrinsic
def first_lanes(context, spec, count):
    """Truth in the first ``count`` lanes."""

    def generate(_c, b, sig, args):
        return _first(b, args[1], sig.args[0].lanes)

    return Vector("bool", spec.lanes)(spec, types.int64), generate


@intrinsic
def all_lanes(context, spec, flag):
    """A byte's truth in every lane."""

    def generate(_c, b, sig, args):
        return spread(b, b.icmp_unsigned("!=", args[1], ir.IntType(8)(0)), sig.args[0].lanes)

    return Vector("bool", spec.lanes)(spec, types.uint8), generate


@intrinsic
def prefetch(context, address):
    """Ask for the cache line at ``address``, for reading; any address is allowed."""

    def generate(c, b, _sig, args):
        pointer = _pointer(b, args[0], ir.IntType(8))
        call_llvm(b, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(2), I32(1))
        return c.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def prefetch_to_write(context, address):
    """Ask for the cache line at ``address``, which is about to be written; any address is allowed."""

    def generate(c, b, _sig, args):
        pointer = _pointer(b, args[0], ir.IntType(8))
        call_llvm(b, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(1), I32(3), I32(1))
        return c.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def fence(context):
    """Let no later store overtake what `store_past` wrote."""

    def generate(c, b, _sig, _args):
        if X86:
            call_llvm(b, "llvm.x86.sse.sfence", ir.VoidType())
        return c.get_dummy_value()

    return types.void(), generate


def _caller(count):
    def typed(context, function, *arguments):
        def generate(c, b, _sig, args):
            kind = ir.FunctionType(ir.VoidType(), [I64] * count)
            b.call(b.inttoptr(args[0], kind.as_pointer()), [*args[1:], *[I64(0)] * (count + 1 - len(args))])
            return c.get_dummy_value()

        return types.void(*[types.int64] * (count + 1)), generate

    return typed


@intrinsic
def call(context, function, part, parts, block):
    """Run a walker at its address."""
    return _caller(4)(context, function, part, parts, block)


@intrinsic
def visit(context, function, block, a, b, c, d, e, f):
    """Run a leaf at its address."""
    return _caller(8)(context, function, block, a, b, c, d, e, f)
