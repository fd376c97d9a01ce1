"""Types of the values that cross a cut in an ONNX graph, as onnxruntime spells them: ``seq(tensor(int64))``.

An array does not tell them: one of float8 arrives as uint8, an optional value as what it holds or None, a sequence
without elements as an empty list; and of some types there are no arrays at all.
"""

# pyright: reportUnknownMemberType=false
# onnx' messages are generated, and have no types.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

__all__ = ["as_array", "input_like", "run"]

WITHOUT = ("bfloat16", "float8", "float4", "int4", "int2")
"""How the element types are called, or end or begin, that session.run has no arrays of, or the wrong ones."""
SPELLED = {"float": "FLOAT", "double": "DOUBLE"}


def _has_arrays(kind: str) -> bool:
    """Whether a value of that type can be handed over as an array, a list of arrays or None."""
    return not any(name in kind for name in WITHOUT)


def input_like(onnx: Any, name: str, value: Any, kind: str | None) -> Any:
    """The input of a graph that takes ``value``, of the type ``kind`` or, without that, of its array's."""
    helper = onnx.helper
    shape = [None] * len(_shape(value))
    if kind is None:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), shape)
    return helper.make_value_info(name, _type(onnx, kind, shape if kind.startswith("tensor(") else None))


def run(ort: Any, session: Any, kinds: Mapping[str, str], given: dict[str, Any]) -> dict[str, Any]:
    """``session.run`` for values of these types, where one that has no array is one of onnxruntime's own."""
    # An optional value that is not there, as one of onnxruntime's own, ends the process when it is looked at.
    if all(map(_has_arrays, kinds.values())) or any(kind.startswith("optional") for kind in kinds.values()):
        return dict(zip(kinds, session.run(list(kinds), given), strict=True))
    wrap = ort.OrtValue.ortvalue_from_numpy
    fed = {name: wrap(value) if isinstance(value, np.ndarray) else value for name, value in given.items()}
    found = zip(kinds.items(), session.run_with_ort_values(list(kinds), fed), strict=True)
    return {name: value.numpy() if _has_arrays(kind) and value.is_tensor() else value for (name, kind), value in found}


def as_array(ort: Any, value: Any) -> Any:
    """A result; onnxruntime itself says that there is none of its type."""
    return value.numpy() if isinstance(value, ort.OrtValue) else value


def _shape(value: Any) -> Sequence[int]:
    if isinstance(value, np.ndarray):
        return cast("tuple[int, ...]", value.shape)
    own: Any = value  # of onnxruntime, a list, or None
    return own.shape() if hasattr(own, "shape") and own.is_tensor() else ()


def _type(onnx: Any, kind: str, shape: Sequence[None] | None) -> Any:
    helper = onnx.helper
    outer, inner = kind[:-1].split("(", 1)
    if outer == "seq":
        return helper.make_sequence_type_proto(_type(onnx, inner, None))
    if outer == "optional":
        return helper.make_optional_type_proto(_type(onnx, inner, None))
    return helper.make_tensor_type_proto(onnx.TensorProto.DataType.Value(SPELLED.get(inner, inner.upper())), shape)
