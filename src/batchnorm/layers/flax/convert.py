# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportMissingTypeStubs=false
# (Flax' annotations are partial: Variables and module paths come out unknown.)
"""Existing Flax models and weights, to our layers and back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import linen, nnx
from flax.core import meta

from batchnorm.errors import ArgumentError, NoBatchNorm

from .layer import BatchNorm

__all__ = ["convert", "freeze", "from_linen", "to_linen", "unfreeze"]

M = TypeVar("M", bound=nnx.Module)
Names = Mapping[str, str]
OPTIONS = (
    "use_running_average",
    "axis",
    "momentum",
    "epsilon",
    "dtype",
    "param_dtype",
    "use_bias",
    "use_scale",
    "axis_name",
    "axis_index_groups",
)


def convert(
    module: nnx.Module | linen.BatchNorm,
    *,
    variables: Mapping[str, Any] | None = None,
    names: Names | None = None,
    **options: Any,
) -> Any:
    """A copy of a model in which every `flax.nnx.BatchNorm` is ours, with its weights, statistics and options.

    Parameters
    ----------
    module : nnx.Module or linen.BatchNorm
        A model, however nested (attributes, lists, dicts, shared modules), or one layer. It is not changed. A Linen
        layer becomes one of ours with the weights of ``variables``.
    variables : mapping, optional
        Linen variables, ``{"params": ..., "batch_stats": ...}``, to fill the batch normalizations with: `from_linen`.
    names : mapping of str to str, optional
        As in `from_linen`.
    **options
        What ours has beyond Flax: ``statistics``, ``ddof``, ``guard``, ``virtual_batch_size``.

    Returns
    -------
    nnx.Module
        With the outputs of the original, up to the rounding of a variance that was not the stable one.

    Raises
    ------
    ArgumentError
        Neither an NNX module nor a Linen layer; a layer has a value that ours refuses (epsilon 0); ``variables`` do not
        fit; a Linen layer without them.

    Notes
    -----
    Subclasses of `flax.nnx.BatchNorm` stay as they are, and a warning names them. What NNX itself cannot see, such as
    a layer closed over by a function, stays too. With ``"debiased"`` statistics that have left their initial value
    count as free of it (``remaining`` 0); with ``"cumulative"`` the first update replaces them.
    """
    if isinstance(module, linen.BatchNorm):
        return _of_linen(module, variables, options)
    _check_module(module, "convert")
    left: list[str] = []

    def swapped(path: tuple[Any, ...], node: Any) -> Any:
        if isinstance(node, nnx.BatchNorm) and not isinstance(node, BatchNorm):
            if type(node) is nnx.BatchNorm:
                return _in_place_of(node, path, options)
            left.append(_joined(path))
        return node

    copy = nnx.recursive_map(swapped, nnx.clone(module))
    if left:
        warnings.warn(f"convert: subclasses of flax.nnx.BatchNorm were left as they are: {left}.", stacklevel=2)
    return copy if variables is None else from_linen(copy, variables, names)


def from_linen(module: M, variables: Mapping[str, Any], names: Names | None = None) -> M:
    """Fill a model's batch normalizations from Linen variables, and return the model.

    Parameters
    ----------
    module : nnx.Module
        A model with our layers; it is changed.
    variables : mapping
        ``{"params": ..., "batch_stats": ...}`` as ``init`` and ``apply`` of a Linen module give them. Only the entries
        of batch normalizations are read.
    names : mapping of str to str, optional
        The Linen path of a layer, by its path here: ``{"block/norm": "Block_0/BatchNorm_0"}``. A layer that is not in
        it has the same path in both; ``layers/0`` is also found as ``layers_0``.

    Raises
    ------
    ArgumentError
        A layer without an entry, or with one of another shape. Nothing is changed then.
    """
    found = [(layer, _entry(path, layer, variables, names or {})) for path, layer in _layers(module)]
    for layer, entry in found:
        for name, value in entry.items():
            variable = getattr(layer, name)
            variable[...] = value.astype(variable.dtype)
        _mark_started(layer)
    return module


def to_linen(module: nnx.Module, names: Names | None = None) -> dict[str, Any]:
    """The batch normalizations of a model as Linen variables, ``{"params": ..., "batch_stats": ...}``.

    Debiased statistics are written with the initial value taken out, so that Linen's inference gives the same output.

    Parameters
    ----------
    module : nnx.Module
        A model with our layers.
    names : mapping of str to str, optional
        As in `from_linen`.
    """
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for path, layer in _layers(module):
        keys = _split((names or {}).get(_joined(path), _joined(path)))
        mean, variance = layer.inference_statistics()
        weights = {"scale": layer.scale, "bias": layer.bias}
        _at(tree["batch_stats"], keys).update(mean=mean, var=variance)
        _at(tree["params"], keys).update({name: w[...] for name, w in weights.items() if w is not None})
    return tree


def freeze(module: M) -> M:
    """Let every batch normalization normalise with its moving statistics and never update them; returns the module.

    It holds until `unfreeze`: neither ``train()`` nor ``use_running_average=False`` lifts it. Scale and bias still get
    gradients; leave them out of the optimizer with a filter.

    Raises
    ------
    ArgumentError
        The module holds layers of Flax' own, which ``train()`` would thaw: `convert` it first; it is no module.
    NoBatchNorm
        No batch normalization in ``module``.
    """
    return _set_frozen(module, True, "freeze")


def unfreeze(module: M) -> M:
    """Undo `freeze`; returns the module."""
    return _set_frozen(module, False, "unfreeze")


def _set_frozen(module: M, frozen: bool, who: str) -> M:
    _check_module(module, who)
    norms = {_joined(path): node for path, node in nnx.iter_modules(module) if isinstance(node, nnx.BatchNorm)}
    if not norms:
        raise NoBatchNorm(f"{who}: there is no batch normalization in {type(module).__name__}.")
    if foreign := [path for path, node in norms.items() if not isinstance(node, BatchNorm)]:
        raise ArgumentError(f"{who}: module holds flax.nnx.BatchNorm at {foreign}. Pass it through convert first.")
    for _, layer in _layers(module):
        layer.frozen = frozen
    return module


def _check_module(module: Any, who: str) -> None:
    if not isinstance(module, nnx.Module):
        raise ArgumentError(f"{who}: module must be a flax.nnx.Module; got {type(module).__name__}.")


def _layers(module: nnx.Module) -> Iterator[tuple[tuple[Any, ...], BatchNorm]]:
    return ((path, node) for path, node in nnx.iter_modules(module) if isinstance(node, BatchNorm))


def _in_place_of(theirs: nnx.BatchNorm, path: tuple[Any, ...], options: Mapping[str, Any]) -> BatchNorm:
    given = {name: getattr(theirs, name) for name in (*OPTIONS, "use_fast_variance", "promote_dtype")}
    try:
        ours = BatchNorm(theirs.num_features, rngs=nnx.Rngs(0), **given, **options)
    except ArgumentError as error:
        raise ArgumentError(f"convert: the layer at {_joined(path)!r}: {error}") from None
    for name in ("mean", "var", "scale", "bias"):
        setattr(ours, name, getattr(theirs, name))
    for name in ("remaining", "updates", "skipped_updates"):
        if hasattr(ours, name):  # a stack of layers, made by nnx.vmap, has longer variables than one layer
            variable = getattr(ours, name)
            setattr(ours, name, type(variable)(jnp.full_like(ours.mean[...], variable[...].max())))
    _mark_started(ours)
    return ours


def _mark_started(layer: BatchNorm) -> None:
    if layer.statistics == "debiased":
        initial = (layer.mean[...] == 0) & (layer.var[...] == 1)
        layer.remaining[...] = jnp.where(initial, 1, 0).astype(layer.remaining.dtype)


def _of_linen(module: linen.BatchNorm, variables: Mapping[str, Any] | None, options: Mapping[str, Any]) -> BatchNorm:
    if variables is None:
        raise ArgumentError("convert: a Linen layer holds no weights. Pass variables=, what its init or apply gave.")
    shape = tuple(meta.unbox(variables["batch_stats"])["mean"].shape)
    given = {name: getattr(module, name) for name in OPTIONS}
    if len(shape) == 1 and not isinstance(given["axis"], int):
        (given["axis"],) = given["axis"]
    features = shape[0] if len(shape) == 1 else shape
    return from_linen(BatchNorm(features, rngs=nnx.Rngs(0), **given, **options), variables)


def _entry(path: tuple[Any, ...], layer: BatchNorm, variables: Mapping[str, Any], names: Names) -> dict[str, Any]:
    here = _joined(path)
    spellings = [names[here]] if here in names else [here, _joined(path, numbered=True)]
    stats, params = (meta.unbox(variables.get(collection, {})) for collection in ("batch_stats", "params"))
    keys = next((keys for keys in map(_split, spellings) if "mean" in _get(stats, keys)), None)
    if keys is None:
        raise ArgumentError(
            f"from_linen: no batch_stats for the layer {here!r}; there are {_holders(stats)}. "
            "Pass names={path here: path there}."
        )
    arrays = {**_get(params, keys), **_get(stats, keys)}
    wanted = [name for name in ("scale", "bias", "mean", "var") if getattr(layer, name) is not None]
    for name in wanted:
        shape, got = getattr(layer, name).shape, getattr(arrays.get(name), "shape", None)
        if got != shape:
            raise ArgumentError(f"from_linen: {name} of the layer {here!r} must have shape {shape}; got {got}.")
    return {name: jnp.asarray(arrays[name]) for name in wanted}


def _holders(tree: Any, path: tuple[str, ...] = ()) -> list[str]:
    if not isinstance(tree, Mapping):
        return []
    own = [_joined(path) or "(the top)"] if "mean" in tree else []
    return own + [name for key, branch in tree.items() for name in _holders(branch, (*path, key))]


def _joined(path: tuple[Any, ...], numbered: bool = False) -> str:
    text = "/".join(map(str, path))
    return "".join(f"_{k}" if isinstance(k, int) else f"/{k}" for k in path).lstrip("/") if numbered else text


def _split(path: str) -> list[str]:
    return path.split("/") if path else []


def _get(tree: Any, keys: list[str]) -> Mapping[str, Any]:
    for key in keys:
        tree = tree.get(key, {}) if isinstance(tree, Mapping) else {}
    return tree


def _at(tree: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    for key in keys:
        tree = tree.setdefault(key, {})
    return tree
