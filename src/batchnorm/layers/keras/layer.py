"""`BatchNormalization` for Keras 3: the variables and the call. The mathematics is `core`'s, the gradient `apply`'s."""

# Keras ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportUntypedClassDecorator=false

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from batchnorm.core import equations, training
from batchnorm.core.equations import Moments
from batchnorm.core.plan import Plan
from batchnorm.core.training import Renorm, State, Statistics
from batchnorm.errors import ArgumentError

from . import arguments, shapes
from .apply import Fixed, How, Outputs
from .backends import running

__all__ = ["BatchNormalization"]

PARAMETERS = ("beta", "gamma")
INITIALIZED = ("beta", "gamma", "moving_mean", "moving_variance")
OWN = ("axis", "momentum", "epsilon", "center", "scale", "synchronized", "renorm", "renorm_clipping", "renorm_momentum")
BEYOND = ("statistics", "ddof", "guard", "virtual_batch_size")


@keras.saving.register_keras_serializable(package="batchnorm")
class BatchNormalization(keras.layers.Layer):
    """Batch normalization with the signature of `keras.layers.BatchNormalization`, and more.

    Training (``training=True`` and ``trainable``), over all axes but ``axis``::

        y = gamma * (x - batch_mean) / sqrt(batch_variance + epsilon) + beta
        moving = momentum * moving + (1 - momentum) * batch

    Inference::

        y = gamma * (x - moving_mean) / sqrt(moving_variance + epsilon) + beta

    Parameters
    ----------
    axis : int or sequence of int
        The axis or axes that hold the channels. gamma, beta and the statistics have their lengths as shape.
    momentum : float
        Share of the old value that one update keeps, 0 to 1.
    epsilon : float
        Added to the variance inside the root; positive.
    center, scale : bool
        Whether there is a beta, a gamma.
    beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer : str or initializer
        As in Keras.
    beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint : optional
        As in Keras.
    synchronized : bool
        Statistics of the batches of all replicas together, each element of equal weight, so that replicas may hold
        unequal batches, or none: over the replicas of a `tf.distribute` strategy, or the processes of
        `torch.distributed`. On JAX a batch sharded under `jax.jit` has the statistics of the whole batch either way.
    renorm, renorm_clipping, renorm_momentum
        Batch renormalization, as in Keras.
    activation : str or callable, optional
        Applied to the output.
    statistics : {"moving", "debiased", "cumulative"}
        ``"moving"``: Keras' way; ``momentum**t`` of the initial value is still in the statistics after t updates.
        ``"debiased"``: it is taken out, so that inference is right from the first update; adds the variable
        ``remaining``. ``"cumulative"``: the plain mean over all updates, momentum is not used; adds ``updates``.
    ddof : {0, 1}
        The stored variance is divided by count - ddof: 0 as Keras, 1 as PyTorch. Normalization always divides by count.
    guard : bool
        Leave a channel's statistics alone where those of the batch are NaN or infinite; `skipped_updates` counts them.
        False is Keras' way: one NaN stays for good.
    virtual_batch_size : int, optional
        Splits a batch along axis 0 into parts of this many samples (the last one may be smaller), each normalised by
        its own statistics, each updating the moving ones once. With renorm every part is corrected towards the
        statistics before the batch.
    **kwargs
        ``name``, ``dtype``, ``trainable``.

    Raises
    ------
    ArgumentError
        An argument outside what is said above. A ValueError.
    TypeError
        Complex input.

    Notes
    -----
    Call with ``layer(x, training=False, mask=None)``. ``mask`` is true where an element counts in the statistics: the
    shape of ``x`` less its channel axes, or the rank of ``x`` with 1 there; it broadcasts along any axis and is cast
    to bool. Masked positions are normalised like any other. Keras' mask propagation passes and keeps it.

    The output has the layer's compute dtype; statistics are computed and kept in float32, also under float16 and
    bfloat16 policies (in float64 for float64).

    It differs from Keras' layer in this: variances come from the corrected two-pass, never from E[x^2] - E[x]^2, and
    inference subtracts the mean first; an empty batch leaves the statistics alone; with everything masked the moving
    statistics normalise and are left alone; a batch with one element per channel gives beta, updates nothing and warns
    once; second derivatives are right. The gradient is the closed form, on every backend. With the defaults the
    variables have Keras' names and order, so weights go both ways; for ``remaining`` and ``updates`` see
    `set_weights`.

    S. Ioffe and C. Szegedy, "Batch Normalization", 2015, arXiv:1502.03167; S. Ioffe, "Batch Renormalization", 2017,
    arXiv:1702.03275.
    """

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        synchronized: bool = False,
        renorm: bool = False,
        renorm_clipping: Mapping[str, float] | None = None,
        renorm_momentum: float = 0.99,
        *,
        activation: Any = None,
        statistics: Statistics = "moving",
        ddof: int = 0,
        guard: bool = True,
        virtual_batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        who = self._who
        self.axis = arguments.check_axis(axis, who)
        self.center, self.scale = bool(center), bool(scale)
        self._get("initializers", locals(), INITIALIZED, "_initializer")
        self._get("regularizers", locals(), PARAMETERS, "_regularizer")
        self._get("constraints", locals(), PARAMETERS, "_constraint")
        self.activation = keras.activations.get(activation) if activation is not None else None
        self.synchronized = arguments.check_synchronized(synchronized, keras.backend.backend(), who)
        self.virtual_batch_size = arguments.check_parts(virtual_batch_size, self.axis, self.synchronized, who)
        self.renorm, self.renorm_clipping = bool(renorm), renorm_clipping
        self.renorm_momentum = arguments.fraction(renorm_momentum, "renorm_momentum", who)
        self._rule = arguments.rule(
            statistics,
            epsilon=epsilon,
            momentum=momentum,
            ddof=ddof,
            guard=guard,
            renorm=Renorm(arguments.limits(renorm_clipping, who), self.renorm_momentum) if renorm else None,
            defaults=self._starts_from_defaults(),
            who=who,
        )
        self.momentum, self.epsilon = self._rule.decay, self._rule.epsilon
        self.statistics, self.ddof, self.guard = self._rule.statistics, self._rule.ddof, self._rule.guard
        self.gamma = self.beta = None
        self._warned = False
        self.supports_masking = True

    @property
    def _who(self) -> str:
        return f"BatchNormalization '{self.name}'"

    def _get(self, module: str, given: Mapping[str, Any], names: Sequence[str], ending: str) -> None:
        for name in names:
            setattr(self, name + ending, getattr(keras, module).get(given[name + ending]))

    def _starts_from_defaults(self) -> bool:
        return isinstance(self.moving_mean_initializer, keras.initializers.Zeros) and isinstance(
            self.moving_variance_initializer, keras.initializers.Ones
        )

    # -- variables ----------------------------------------------------------------------------------------------------

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the variables, in Keras' order and with Keras' names."""
        how = shapes.layout(tuple(input_shape), self.axis, self._who)
        channels = tuple(input_shape[i] for i in how.kept)
        if None in channels:
            raise ArgumentError(
                f"{self._who}: the length of the channel axis must be known; axis={self.axis} of an input of shape "
                f"{tuple(input_shape)} is not. Give the input a fixed number of channels."
            )
        self.gamma = self._parameter("gamma", channels) if self.scale else None
        self.beta = self._parameter("beta", channels) if self.center else None
        for name in training.state_names(self._rule):
            setattr(self, name, self._statistic(name, channels))
        self._count_skipped(channels)
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes={i: input_shape[i] for i in how.kept})

    def _parameter(self, name: str, channels: tuple[int | None, ...]) -> Any:
        return self.add_weight(
            shape=channels,
            name=name,
            initializer=getattr(self, f"{name}_initializer"),
            regularizer=getattr(self, f"{name}_regularizer"),
            constraint=getattr(self, f"{name}_constraint"),
            trainable=True,
            autocast=False,
        )

    def _statistic(self, name: str, channels: tuple[int | None, ...]) -> Any:
        return self.add_weight(
            shape=channels,
            name=name,
            initializer=self._initializer_of(name),
            dtype=_at_least_float32(self.variable_dtype),
            trainable=False,
            autocast=False,
        )

    def _initializer_of(self, name: str) -> Any:
        mean, variance = (_fresh(i) for i in (self.moving_mean_initializer, self.moving_variance_initializer))
        if name.endswith("stddev"):
            return lambda shape, dtype=None: ops.sqrt(variance(shape, dtype=dtype))
        given = {"moving_mean": mean, "renorm_mean": mean, "moving_variance": variance}
        return given.get(name) or ("ones" if name == "remaining" else "zeros")

    def _count_skipped(self, channels: tuple[int | None, ...]) -> None:
        # Not by setattr: Keras would track it, and it is not part of the saved state.
        skipped = keras.Variable("zeros", shape=channels, dtype="float32", trainable=False, name="skipped_updates")
        object.__setattr__(self, "_skipped", skipped if self.guard else None)

    @property
    def skipped_updates(self) -> Any:
        """How many updates the guard skipped, per channel, since the layer was built: an array of int."""
        skipped = getattr(self, "_skipped", None)
        return None if skipped is None else ops.convert_to_numpy(skipped).astype(np.int64)

    @property
    def variables(self) -> list[Any]:
        """All state. On JAX, where state travels through compiled steps as arguments, also `skipped_updates`."""
        skipped = getattr(self, "_skipped", None)
        carried = skipped is not None and running().COUNTED_IN_STATE
        return [*super().variables, skipped] if carried else super().variables

    # -- call ---------------------------------------------------------------------------------------------------------

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise ``inputs``; with the batch's statistics where ``training`` and the layer is trainable."""
        wide = self._wide_type(inputs)
        how = shapes.layout(shapes.static_shape(inputs), self.axis, self._who)
        if mask is not None:
            mask = shapes.full_mask(mask, inputs, how.kept, self._who)
        y = self._trained(inputs, mask, how, wide) if training and self.trainable else self._inferred(inputs, how, wide)
        return y if self.activation is None else self.activation(y)

    def _wide_type(self, inputs: Any) -> str:
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if dtype.startswith("complex"):
            raise TypeError(
                f"{self._who}: the input must be real; got dtype {dtype}. Normalise the real and the imaginary part "
                "as channels of their own."
            )
        return keras.backend.result_type(dtype, "float32")

    def _inferred(self, x: Any, how: Plan, wide: str) -> Any:
        mean, variance, gamma, beta = self._broadcast(
            wide, how.broadcast_shape, *self._inference_statistics(), self.gamma, self.beta
        )
        y = equations.normalized(ops, ops.cast(x, wide), mean, variance, gamma, beta, self.epsilon)
        return ops.cast(y, self.compute_dtype)

    def _trained(self, x: Any, mask: Any, how: Plan, wide: str) -> Any:
        if self.virtual_batch_size is None:
            outputs, count = self._normalised(x, mask, how, wide)
            self._remember(self._per_channel(outputs, count, how), parts=None)
            return outputs.y
        parts = shapes.in_parts(x, mask, self.virtual_batch_size, how.kept)
        outputs, count = self._normalised(parts.x, parts.mask, _with_parts(how), wide)
        self._remember(self._per_channel(outputs, count, how, parts=True), parts=ops.shape(outputs.high)[0])
        return shapes.joined(outputs.y, parts)

    def _normalised(self, x: Any, mask: Any, plan: Plan, wide: str) -> tuple[Outputs, int | None]:
        backend = running()
        gather, total = backend.collectives() if self.synchronized else (None, None)
        static, count = shapes.counted(x, mask, plan.reduced, wide)
        if static == 1 and gather is None:
            self._warn_of_one_element(x)
        if static is not None and gather is not None:
            static, count = None, ops.full((1,) * len(x.shape), static, dtype=wide)
        how = How(
            axes=plan.reduced,
            epsilon=self.epsilon,
            wide=wide,
            narrow=self.compute_dtype,
            count=static,
            parts=self.virtual_batch_size is not None,
            limits=None if self._rule.renorm is None else self._rule.renorm.limits,
            gather=gather,
            total=total,
        )
        gamma, beta = self._broadcast(wide, plan.broadcast_shape, self.gamma, self.beta)
        return backend.train(how, x, gamma, beta, self._fixed(mask, count, plan, wide)), static

    def _fixed(self, mask: Any, count: Any, plan: Plan, wide: str) -> Fixed:
        mean = variance = renorm_mean = renorm_std = None
        if count is not None:
            mean, variance = self._broadcast(wide, plan.broadcast_shape, *self._inference_statistics())
        if self.renorm:
            renorm_mean, renorm_std = self._broadcast(wide, plan.broadcast_shape, self.renorm_mean, self.renorm_stddev)
        return Fixed(mask, count, mean, variance, renorm_mean, renorm_std)

    def _broadcast(self, dtype: str, shape: tuple[int, ...], *values: Any) -> tuple[Any, ...]:
        return tuple(None if v is None else ops.reshape(ops.cast(v, dtype), shape) for v in values)

    def _inference_statistics(self) -> tuple[Any, Any]:
        return training.inference_statistics(ops, self._rule, self._state())

    def _state(self) -> State:
        return {name: ops.convert_to_tensor(getattr(self, name)) for name in training.state_names(self._rule)}

    # -- update -------------------------------------------------------------------------------------------------------

    def _per_channel(self, outputs: Outputs, static: int | None, plan: Plan, parts: bool = False) -> Moments:
        shape = (-1, *plan.channel_shape) if parts else plan.channel_shape
        dtype = self.moving_mean.dtype
        high, low, variance = (
            ops.reshape(ops.cast(ops.stop_gradient(v), dtype), shape)
            for v in (outputs.high, outputs.low, outputs.variance)
        )
        count = outputs.count if static is None else ops.full(ops.shape(outputs.high), static, dtype=dtype)
        count = ops.reshape(ops.broadcast_to(ops.cast(count, dtype), ops.shape(outputs.high)), shape)
        return Moments(count if parts or static is None else static, high, low, variance)

    def _remember(self, batch: Moments, parts: Any) -> None:
        state, names = self._state(), list(training.state_names(self._rule))
        skipped = ops.zeros_like(batch.high if parts is None else batch.high[0])

        def one(state: State, batch: Moments, skipped: Any) -> tuple[State, Any]:
            state, now = training.update(ops, self._rule, state, batch)
            return state, skipped + ops.cast(now, skipped.dtype)

        def step(k: Any, carry: Any) -> Any:
            state, now = one(dict(zip(names, carry[:-1], strict=True)), Moments(*(v[k] for v in batch)), carry[-1])
            return (*(state[name] for name in names), now)

        if parts is None:
            state, skipped = one(state, batch, skipped)
        else:
            *arrays, skipped = ops.fori_loop(0, parts, step, (*(state[name] for name in names), skipped))
            state = dict(zip(names, arrays, strict=True))
        for name in names:
            getattr(self, name).assign(state[name])
        if self._skipped is not None:
            self._skipped.assign_add(ops.cast(skipped, "float32"))

    def _warn_of_one_element(self, x: Any) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._who}: training on one element per channel (input of shape {shapes.static_shape(x)}): the "
                "output is beta, and the moving statistics are left alone. Use larger batches, or training=False.",
                stacklevel=2,
            )

    # -- saving -------------------------------------------------------------------------------------------------------

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The shape of the input."""
        shapes.layout(tuple(input_shape), self.axis, self._who)
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        config = {name: getattr(self, name) for name in (*OWN, *BEYOND)}
        config |= _serialized("initializers", self, INITIALIZED, "_initializer")
        config |= _serialized("regularizers", self, PARAMETERS, "_regularizer")
        config |= _serialized("constraints", self, PARAMETERS, "_constraint")
        config["activation"] = None if self.activation is None else keras.activations.serialize(self.activation)
        return {**super().get_config(), **config}

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the variables from arrays; those of a layer without ``remaining`` or ``updates`` will do.

        Where ``remaining`` is not given it becomes 0: the given statistics are taken to hold nothing of the initial
        value. Where ``updates`` is not given it becomes 0: the given statistics normalise until the next update,
        which begins the average anew.
        """
        weights = list(weights)
        if self._lacks_own(len(weights), len(self.weights)):
            weights.append(np.zeros(self.moving_mean.shape, "float32"))
        super().set_weights(weights)

    def load_own_variables(self, store: Any) -> None:
        """Load from a file; as in `set_weights`, one written by a layer without ``remaining`` or ``updates`` will do."""
        expected = len(self._trainable_variables) + len(self._non_trainable_variables)
        if self._lacks_own(len(store.keys()), expected):
            given = {key: store[key] for key in store.keys()}  # noqa: SIM118
            store = {**given, str(expected - 1): np.zeros(self.moving_mean.shape, "float32")}
        super().load_own_variables(store)

    def _lacks_own(self, given: int, expected: int) -> bool:
        return self.built and self.statistics in ("debiased", "cumulative") and given == expected - 1


def _at_least_float32(dtype: str) -> str:
    return keras.backend.result_type(dtype, "float32")


def _fresh(initializer: Any) -> Any:
    # An initializer with a seed gives the same numbers once only; Keras clones it for each further variable.
    if isinstance(initializer, keras.initializers.Initializer):
        return initializer.__class__.from_config(initializer.get_config())
    return initializer


def _with_parts(plan: Plan) -> Plan:
    return Plan(
        kept=(0, *(i + 1 for i in plan.kept)),
        reduced=tuple(i + 1 for i in plan.reduced),
        channel_shape=plan.channel_shape,
        broadcast_shape=(1, *plan.broadcast_shape),
        count=plan.count,
    )


def _serialized(module: str, layer: Any, names: Sequence[str], ending: str) -> dict[str, Any]:
    serialize = getattr(keras, module).serialize
    return {name + ending: serialize(getattr(layer, name + ending)) for name in names}
