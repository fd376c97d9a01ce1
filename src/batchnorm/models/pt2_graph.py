"""The batch normalizations among the nodes of an exported program's JSON graph."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from batchnorm.core.record import Mode

from .stack_trace import innermost_line

__all__ = ["OPERATOR", "OPERATORS", "Json", "Norm", "norm_of", "norms_of", "state_names", "tensors_of"]

Json = dict[str, Any]

# Operators, without their namespace and overload; what they fix, where no argument tells it.
OPERATORS: dict[str, bool | None] = {
    "batch_norm": None,
    "_native_batch_norm_legit": None,
    "_native_batch_norm_legit_functional": None,
    "native_batch_norm": None,
    "cudnn_batch_norm": None,
    "miopen_batch_norm": None,
    "_batch_norm_impl_index": None,
    "_native_batch_norm_legit_no_training": False,
    "_batch_norm_no_update": False,
    "_batch_norm_with_update": True,
    "_batch_norm_with_update_functional": True,
}
OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+)\.\w+")
ROLES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
MOMENTUM = ("momentum", "exponential_average_factor")
EPSILON = ("eps", "epsilon")
LARGEST = 1e30
MOST_DEPTH = 20
MOST_OTHERS = 200


@dataclass(frozen=True, slots=True)
class Norm:
    """A batch normalization; ``arrays`` gives the name of each parameter in the program's state.

    ``calls`` counts its calls among all calls of such operators in the outermost graph, in their order.
    """

    name: str
    kind: str
    epsilon: float
    momentum: float
    mode: Mode
    arrays: dict[str, str]
    prefix: str | None
    source: str | None
    calls: tuple[int, ...] = ()

    @property
    def mean(self) -> str | None:
        """The name of the moving mean; None where the batch's own is taken."""
        return self.arrays.get("moving_mean")

    @property
    def is_cumulative(self) -> bool:
        """In a graph that updates nothing, 0 is what becomes of momentum=None."""
        return self.momentum == 0 and self.mode != "training"


def norms_of(module: Json) -> tuple[list[Norm], tuple[str, ...]]:
    """Every batch normalization of a graph module, and the names of its other nodes.

    A layer that is called several times, with the same settings, is there once.
    """
    names = dict(state_names(module["signature"]["input_specs"]))
    found: list[Norm] = []
    others: list[str] = []
    seen: dict[tuple[Any, ...], int] = {}
    calls = 0
    for node, given, depth in _nodes(module["graph"], names, 0):
        operator = OPERATOR.fullmatch(_text(node["target"]))
        is_call = operator is not None and operator[1] in OPERATORS
        call = (calls,) if is_call and depth == 0 else ()
        calls += len(call)
        norm = norm_of(node, given)
        if norm is None:
            if len(others) < MOST_OTHERS:
                others.append(str(node.get("name") or node["target"]))
            continue
        key = (norm.mean or norm.name, norm.epsilon, norm.momentum, norm.mode, *sorted(norm.arrays.values()))
        if norm.prefix is None or key not in seen:
            seen[key] = len(found)
            found.append(replace(norm, calls=call))
        else:
            first = found[seen[key]]
            found[seen[key]] = replace(first, calls=first.calls + call)
    return found, tuple(others)


def state_names(specs: list[Json]) -> Iterator[tuple[str, str]]:
    """Name of a graph's input -> name of the parameter or buffer that it is."""
    for spec in specs:
        for kind, key in (
            ("parameter", "parameter_name"),
            ("buffer", "buffer_name"),
            ("tensor_constant", "tensor_constant_name"),
        ):
            if kind in spec:
                yield _text(spec[kind]["arg"]["name"]), _text(spec[kind][key])


def _nodes(graph: Json, names: dict[str, str], depth: int) -> Iterator[tuple[Json, dict[str, str], int]]:
    """Every node, the state that names stand for there, and its depth; branches see what their caller hands them."""
    if depth > MOST_DEPTH:
        raise ValueError(f"its graphs are nested more than {MOST_DEPTH} deep")
    for node in cast("list[Json]", graph["nodes"]):
        yield node, names, depth
        given = [each["arg"] for each in cast("list[Json]", node["inputs"])]
        # A lone tensor is the condition.
        handed = [name for arg in given if "as_tensors" in arg for name in tensors_of(arg)]
        for arg in given:
            if "as_graph" in arg:
                inner: Json = arg["as_graph"]["graph"]
                own = [name for each in inner["inputs"] for name in tensors_of(each)]
                pairs = zip(reversed(own), reversed(handed), strict=False)  # captured state comes last
                known = {mine: names[theirs] for mine, theirs in pairs if theirs in names}
                yield from _nodes(inner, known, depth + 1)


def tensors_of(arg: Json) -> list[str]:
    """The names of the values in an argument or output."""
    if "as_tensor" in arg:
        return [_text(arg["as_tensor"]["name"])]
    return [_text(each["name"]) for each in cast("list[Json]", arg.get("as_tensors") or [])]


def norm_of(node: Json, names: dict[str, str]) -> Norm | None:
    """The batch normalization that a node is; None where it is none."""
    operator = OPERATOR.fullmatch(_text(node["target"]))
    metadata: Json = node.get("metadata") or {}
    path, kind = _module(_text(metadata.get("nn_module_stack") or ""))
    if operator is None or operator[1] not in OPERATORS or "InstanceNorm" in kind:
        return None
    arguments: Json = {each["name"]: each["arg"] for each in node["inputs"]}
    arrays = {ROLES[key]: name for key in ROLES for name in tensors_of(arguments.get(key) or {})}
    is_training = OPERATORS[operator[1]]
    if is_training is None:
        is_training = _flag(arguments["training"])
    state = {role: names[name] for role, name in arrays.items() if name in names}
    prefix = _prefix(state)
    return Norm(
        name=prefix
        if prefix is not None
        else path or _text(node.get("name") or node["outputs"][0]["as_tensor"]["name"]),
        kind=kind or operator[1],
        epsilon=_number(arguments, EPSILON),
        momentum=_number(arguments, MOMENTUM),
        mode=_mode(is_training, arrays),
        arrays=state,
        prefix=prefix,
        source=innermost_line(_text(metadata.get("stack_trace") or "")),
    )


def _mode(is_training: bool, arrays: dict[str, str]) -> Mode:
    if "moving_mean" not in arrays:
        return "batch-statistics"
    return "training" if is_training else "inference"


def _prefix(state: dict[str, str]) -> str | None:
    """What the names of a layer's parameters have in common."""
    for key, role in ROLES.items():
        name = state.get(role, "")
        if name.endswith(f".{key}"):
            return name[: -len(key) - 1]
    return None


def _module(stack: str) -> tuple[str, str]:
    """Path and class of the innermost module: ``key,path,class`` each, joined by semicolons."""
    parts = stack.rpartition(";")[2].split(",")
    return (parts[1], parts[2].rpartition(".")[2]) if len(parts) >= 3 else ("", "")


def _number(arguments: Json, keys: tuple[str, ...]) -> float:
    arg = next((arguments[key] for key in keys if key in arguments), None)
    if arg is None:
        raise ValueError(f"a batch normalization without {keys[0]}")
    value = arg["as_float"] if "as_float" in arg else arg["as_int"]
    # Infinity and NaN are spelled as strings, and are no setting of a layer.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:
        raise ValueError(f"{keys[0]} is {value!r}")
    return float(value)


def _flag(arg: Json) -> bool:
    if not isinstance(arg["as_bool"], bool):
        raise TypeError(f"training is {arg['as_bool']!r}")
    return arg["as_bool"]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value
