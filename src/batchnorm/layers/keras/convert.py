"""`convert` swaps the batch normalizations of a model for ours; `freeze` and `unfreeze` work on a live model's."""

# Keras ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportUnknownParameterType=false

from __future__ import annotations

import warnings
from typing import Any

import keras

from batchnorm.errors import ArgumentError, Refused

from .layer import BatchNormalization
from .replace import replace_layers

__all__ = ["convert", "freeze", "unfreeze"]

Theirs: Any = keras.layers.BatchNormalization


def convert(model: Any, **options: Any) -> Any:
    """The model with every `keras.layers.BatchNormalization` replaced by ours: same weights, names and outputs.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
        Functional and Sequential models are cloned, nested ones, wrappers and layers with sublayers included: the
        model that was given stays as it is. A subclassed model, or a layer, is changed in place: in its attributes,
        in lists, tuples, dicts and sets in them, and in the graphs of functional models (its own, where it is a
        subclass of one), at any depth.
    **options
        Arguments of our layer that Keras' does not have, or other values: ``statistics="debiased"``, ``guard=False``.

    Returns
    -------
    keras.Model or keras.layers.Layer
        The clone, compiled as the model was (without its optimizer's state), or ``model`` itself; compile that again.

    Raises
    ------
    ArgumentError
        ``model`` is not a Keras layer; an option that our layer refuses.
    Refused
        A layer on the way that cannot be cloned, since its class has no working ``get_config``.

    Warns
    -----
    UserWarning
        Lists what was left as it is: subclasses of Keras' layer, whose own code a replacement would lose, and layers
        that are tracked but held where attributes do not lead. A layer only a closure holds cannot be seen.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(name="bn")])
    >>> type(convert(model).get_layer("bn")).__module__.split(".")[0]
    'batchnorm'
    """
    if not isinstance(model, keras.layers.Layer):
        raise ArgumentError(f"convert: model must be a Keras model or layer; got {type(model).__name__}.")
    converter = _Converter(options)
    converted = converter.convert(model)
    if left := [_path(layer) for layer in _flat(converted) if isinstance(layer, Theirs)]:
        warnings.warn(
            f"convert: left as they are: {', '.join(left)}. They are subclasses of Keras' layer, or held where no "
            "attribute, list or dict leads to them. Replace them by hand.",
            stacklevel=2,
        )
    return converted


def freeze(model: Any) -> list[str]:
    """Freeze every batch normalization of a model, ours and Keras': inference statistics, no update, no gradient.

    ``trainable`` of those layers becomes False. Setting ``model.trainable = True`` later thaws them, as it does any
    layer in Keras. A compiled model must be compiled again, which a warning says.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
        Changed in place.

    Returns
    -------
    list of str
        The paths of the layers.
    """
    return _set_trainable(model, False, "freeze")


def unfreeze(model: Any) -> list[str]:
    """Undo `freeze`: ``trainable`` of every batch normalization becomes True. Returns their paths."""
    return _set_trainable(model, True, "unfreeze")


def _set_trainable(model: Any, value: bool, who: str) -> list[str]:
    if not isinstance(model, keras.layers.Layer):
        raise ArgumentError(f"{who}: model must be a Keras model or layer; got {type(model).__name__}.")
    norms = [layer for layer in _flat(model) if isinstance(layer, Theirs | BatchNormalization)]
    changed = [layer for layer in norms if layer.trainable != value]
    for layer in changed:
        layer.trainable = value
    if changed and getattr(model, "compiled", False):
        warnings.warn(f"{who}: the model is compiled. Compile it again for this to take effect.", stacklevel=3)
    return [_path(layer) for layer in norms]


class _Converter:
    """One conversion: what became of each layer, so that a layer used twice is replaced by one layer."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.done: dict[int, tuple[Any, Any]] = {}

    def convert(self, model: Any) -> Any:
        if _is_graph(model):
            return self.cloned(model)
        new = self.swap(model)
        if new is model:
            replace_layers(model, self.swap)
            for layer in _flat(model):
                _forget_compiled(layer)
        return new

    def cloned(self, model: Any) -> Any:
        pairs: list[tuple[Any, Any]] = []

        def clone(layer: Any) -> Any:
            new = self.clone(layer)
            pairs.append((layer, new))
            return new

        new = keras.models.clone_model(model, clone_function=clone, recursive=True)
        new.trainable = model.trainable
        for old_layer, new_layer in pairs:
            if isinstance(old_layer, keras.layers.Layer):
                _copy_state(old_layer, new_layer)
        return new

    def clone(self, layer: Any) -> Any:
        if type(layer) is Theirs:
            return self.ours(layer)
        try:
            new = layer.__class__.from_config(layer.get_config())
        except Exception as error:
            raise Refused(
                f"convert: layer {layer.name!r} of class {type(layer).__name__} cannot be cloned: {error} Give its "
                "class a get_config that returns its arguments, or convert a subclassed model, which is not cloned."
            ) from error
        if isinstance(new, keras.layers.Layer):
            _keep_names(layer, new)
            replace_layers(new, self.swap)
        return new

    def swap(self, layer: Any) -> Any:
        """The layer to put in the place of ``layer``, with its weights; itself where there is nothing to do."""
        if id(layer) in self.done:
            return self.done[id(layer)][1]
        new = layer
        if type(layer) is Theirs:
            new = self.ours(layer)
            if layer.built:
                new._parent_path = layer._parent_path
                new.build(**layer._build_shapes_dict)
                new.built = True
                _copy_state(layer, new)
        self.done[id(layer)] = (layer, new)  # the old one too: its id must not be given to another object
        return new

    def ours(self, layer: Any) -> BatchNormalization:
        # Not from_config, which wraps what the constructor says in a TypeError about deserializing.
        return BatchNormalization(**{**layer.get_config(), **self.options})


def _is_graph(layer: Any) -> bool:
    # A subclass of Sequential or of a functional model may hold anything: it is not cloned.
    return type(layer) in (keras.Sequential, keras.Model, keras.src.models.Functional)


def _keep_names(old: Any, new: Any) -> None:
    # Layers that a layer makes itself, without a name, are counted through the process: the clone's would differ.
    for a, b in zip(_flat(old), _flat(new), strict=True):
        b.name = a.name


def _copy_state(old: Any, new: Any) -> None:
    for a, b in zip(_flat(old), _flat(new), strict=True):
        b.trainable = a.trainable
    for a, b in zip(_flat(old), _flat(new), strict=True):
        if isinstance(b, BatchNormalization):
            if a.built:
                b.set_weights(a.get_weights())
            continue
        for mine, theirs in zip(_own_variables(b), _own_variables(a), strict=True):
            mine.assign(keras.ops.convert_to_numpy(theirs))  # a copy: JAX gives away the arrays of a trained model


def _own_variables(layer: Any) -> list[Any]:
    generators = [generator.state for generator in layer._seed_generators]
    return [*layer._trainable_variables, *layer._non_trainable_variables, *generators]


def _forget_compiled(layer: Any) -> None:
    for name in ("train_function", "test_function", "predict_function"):
        if getattr(layer, name, None) is not None:
            setattr(layer, name, None)


def _flat(layer: Any) -> list[Any]:
    return layer._flatten_layers()


def _path(layer: Any) -> str:
    return str(layer.path or layer.name)
