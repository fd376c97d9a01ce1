"""`BatchNormalization` for Keras 3: arguments and call. The mathematics is `core`'s, the gradient `apply`'s."""

# Keras ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportUntypedClassDecorator=false

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from batchnorm.core import equations, training
from batchnorm.core.arrays import as_axis
from batchnorm.core.plan import Plan
from batchnorm.core.training import Renorm, Rule, Statistics
from batchnorm.layers import arguments

from . import arguments as own
from . import shapes
from .apply import cast
from .backends import BACKEND, constant, infer, running, value
from .state import Stateful, wide_type
from .step import Task, per_channel, train

__all__ = ["BatchNormalization"]

PARAMETERS = ("beta", "gamma")
INITIALIZED = ("beta", "gamma", "moving_mean", "moving_variance")
OWN = ("axis", "momentum", "epsilon", "center", "scale", "synchronized", "renorm", "renorm_clipping", "renorm_momentum")
BEYOND = ("statistics", "ddof", "guard", "virtual_batch_size")


@keras.saving.register_keras_serializable(package="batchnorm")
class BatchNormalization(Stateful):
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
    to bool. Any other lies along the leading axes of ``x``, and may differ from channel to channel; so does, always,
    the one that an earlier layer passes on. Masked positions are normalised like any other, and the mask goes
    on to the next layer.

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
        self.axis = as_axis(axis, who)
        self.center, self.scale = bool(center), bool(scale)
        self._get("initializers", locals(), INITIALIZED, "_initializer")
        self._get("regularizers", locals(), PARAMETERS, "_regularizer")
        self._get("constraints", locals(), PARAMETERS, "_constraint")
        self.activation = keras.activations.get(activation) if activation is not None else None
        self.synchronized = own.check_synchronized(synchronized, BACKEND, who)
        self.virtual_batch_size = virtual_batch_size
        kept = arguments.share(who, "renorm_momentum", renorm_momentum)
        limits = arguments.renorm_limits(who, renorm_clipping)
        self._renorm_clipping = None if renorm_clipping is None else dict(renorm_clipping)
        self._rule = Rule(
            epsilon=arguments.positive(who, "epsilon", epsilon),
            decay=arguments.share(who, "momentum", momentum),
            ddof=arguments.one_of(who, "ddof", ddof, (0, 1)),
            statistics=arguments.one_of(who, "statistics", statistics, ("moving", "debiased", "cumulative")),
            guard=bool(guard),
            renorm=Renorm(limits, kept) if renorm else None,
        )
        self._renorm_momentum = kept
        own.check_initial(statistics, self.moving_mean_initializer, self.moving_variance_initializer, who)
        self.gamma = self.beta = None
        self._warned = False
        self.supports_masking = True

    @property
    def virtual_batch_size(self) -> int | None:
        """Samples in each part of a batch, None for the batch as a whole; may be set."""
        return self._virtual_batch_size

    @virtual_batch_size.setter
    def virtual_batch_size(self, value: Any) -> None:
        self._virtual_batch_size = own.check_parts(value, self.axis, self.synchronized, self._who)

    def _get(self, module: str, given: Mapping[str, Any], names: Sequence[str], ending: str) -> None:
        for name in names:
            setattr(self, name + ending, getattr(keras, module).get(given[name + ending]))

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise ``inputs``; with the batch's statistics where ``training`` and the layer is trainable."""
        inputs = ops.convert_to_tensor(inputs)  # stateless_call passes on what it is given
        wide = self._wide_type(inputs)
        if training and self.trainable:
            y = self._trained(inputs, mask, self._plan, wide)
        else:
            y = self._inferred(inputs, self._plan, wide)
        return y if self.activation is None else self.activation(y)

    def _wide_type(self, inputs: Any) -> str:
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if dtype.startswith("complex"):
            raise TypeError(
                f"{self._who}: the input must be real; got dtype {dtype}. Normalise the real and the imaginary part "
                "as channels of their own."
            )
        return wide_type(dtype)

    def _inferred(self, x: Any, how: Plan, wide: str) -> Any:
        statistics = training.inference_statistics(running.XP, self._rule, self._state())
        given = *statistics, *(None if v is None else value(v) for v in (self.gamma, self.beta))
        mean, variance, gamma, beta = per_channel(wide, how.broadcast_shape, *given)
        if infer is not None:
            y = infer(x, mean, variance, gamma, beta, how.reduced, self.epsilon, self.compute_dtype)
            if y is not None:
                return y
        y = equations.normalized(running.XP, cast(x, wide), mean, variance, gamma, beta, self.epsilon)
        return cast(y, self.compute_dtype)

    def _trained(self, x: Any, mask: Any, how: Plan, wide: str) -> Any:
        if mask is not None:
            mask = shapes.full_mask(mask, x, how.kept, self._who)
        gather, total = running.collectives() if self.synchronized else (None, None)
        if mask is None and gather is None:
            self._warn_of_one_element(x, how)
        # One read of each variable, which all that follows depends on: TensorFlow's graph optimizer has been seen to
        # run a second read after the assignment that stands below it.
        state = {name: constant(getattr(self, name)) for name in training.state_names(self._rule)}
        gamma, beta = (None if v is None else value(v) for v in (self.gamma, self.beta))
        task = Task(how, self._rule, wide, self.compute_dtype, self.virtual_batch_size, gather, total)
        y, state, skipped = running.compiled(train)(task, x, mask, gamma, beta, state)
        self._remember(state, skipped)
        return y

    def _warn_of_one_element(self, x: Any, how: Plan) -> None:
        if self._warned or not shapes.is_one_element(x, how.reduced, self.virtual_batch_size):
            return
        self._warned = True
        warnings.warn(
            f"{self._who}: training on one element per channel (input of shape {shapes.static_shape(x)}): the "
            "output is beta, and the moving statistics are left alone. Use larger batches, or training=False.",
            stacklevel=2,
        )

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


def _serialized(module: str, layer: Any, names: Sequence[str], ending: str) -> dict[str, Any]:
    serialize = getattr(keras, module).serialize
    return {name + ending: serialize(getattr(layer, name + ending)) for name in names}
