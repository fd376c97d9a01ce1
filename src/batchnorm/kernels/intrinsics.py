"""The machine's words for the kernels: vectors, what a kernel is compiled for, numbers at an address, calls of one.

Numba has no vector type; these are LLVM's own, so they exist on every processor: what the hardware lacks is split into
smaller registers. Kernels work on addresses (64-bit integers) and element indices. What a kernel is compiled for, its
element type, activation and options, is the *type* of its last argument, a `Spec`: a variant is compiled when it is
first used, once for all threads, and cached on disk.

Vectors in memory are the business of `memory`. Nothing is compiled with fast-math flags: sums are in the order they
are written in.
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

__all__ = [
    "HOST",
    "Spec",
    "Vector",
    "call_llvm",
    "constants",
    "element_at",
    "has_float16",
    "pointer",
    "spread",
    "suffix",
]

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
line = _constant(lambda spec: BYTES // SIZES[spec.dtype], types.int64, I64)
lines = _constant(lambda spec: max(1, BYTES // (SIZES[spec.dtype] * spec.lanes)), types.int64, I64)
is_double = _constant(lambda spec: spec.wide == "float64", types.boolean, ir.IntType(1))
has_activation = _constant(lambda spec: spec.activation != "identity", types.boolean, ir.IntType(1))
has_residual = _constant(lambda spec: spec.residual, types.boolean, ir.IntType(1))
has_mask = _constant(lambda spec: spec.mask, types.boolean, ir.IntType(1))
streams = _constant(lambda spec: spec.stream, types.boolean, ir.IntType(1))


# -- scalars at an address -----------------------------------------------------------------------------------------


def pointer(b, address, to):
    """An address as a pointer."""
    return b.inttoptr(address, to.as_pointer())


def element_at(b, address, index, size, to):
    """A pointer to an element, of so many bytes."""
    return pointer(b, b.add(address, b.mul(index, I64(size))), to)


def _peek(kind, ll, size):
    def typed(context, address, index):
        def generate(_c, b, _sig, args):
            return b.load(element_at(b, args[0], args[1], size, ll))

        return kind(types.int64, types.int64), generate

    return intrinsic(typed)


def _poke(kind, ll, size):
    def typed(context, address, index, value):
        def generate(c, b, _sig, args):
            b.store(args[2], element_at(b, args[0], args[1], size, ll))
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
            value = b.load(element_at(b, args[0], args[1], 2, ELEMENTS[name]))
            if name == "bfloat16":
                value = b.bitcast(b.shl(b.zext(value, I32), I32(16)), ir.FloatType())
            return value if name == "bfloat16" else b.fpext(value, ir.FloatType())

        return types.float32(types.int64, types.int64), generate

    return intrinsic(typed)


get_short = _peek_half("bfloat16")
get_half = _peek_half("float16")


# -- instructions, and calls -----------------------------------------------------------------------------------------


def spread(b, value, n):
    """A scalar in each of ``n`` lanes."""
    kind = ir.VectorType(value.type, n)
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(I32, n), [0] * n))


def call_llvm(b, name, result, *args):
    """Call one of LLVM's functions; without a type in its name, that of the first argument is added."""
    if name.count(".") == 1:
        name = f"{name}.{suffix(args[0].type)}"
    function = cgutils.get_or_insert_function(b.module, ir.FunctionType(result, [a.type for a in args]), name)
    return b.call(function, args)


def suffix(kind):
    """Of the name of LLVM's function for a type of vector."""
    names = {"double": "f64", "float": "f32", "half": "f16"}
    return f"v{kind.count}{names.get(str(kind.element), str(kind.element))}"


def constants(number, kind):
    """A number in each lane of a vector's type."""
    return ir.Constant(kind, [number] * kind.count)


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
