# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportMissingTypeStubs=false
# (Flax' annotations are partial: initializers, promote_dtype and Variable's indexing come out unknown.)
"""Batch normalization for Flax NNX, in the place of `flax.nnx.BatchNorm`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes, initializers

from batchnorm.core import equations, training
from batchnorm.core.arrays import as_axis
from batchnorm.core.plan import Plan, plan
from batchnorm.core.training import Rule, Statistics
from batchnorm.errors import ArgumentError
from batchnorm.layers.arguments import non_negative_int, one_of, positive, positive_int_or_none, share

from .training import Sync, Task, full_mask, train

__all__ = ["BatchNorm", "SkippedUpdates"]

NO_METADATA: Mapping[str, Any] = MappingProxyType({})
VARIABLES = {"moving_mean": "mean", "moving_variance": "var", "remaining": "remaining", "updates": "updates"}
ZEROS, ONES = initializers.zeros_init(), initializers.ones_init()
WHO = "BatchNorm"
CHECKS: Mapping[str, Callable[[str, str, Any], Any]] = {
    "axis": lambda who, _, value: as_axis(value, who),
    "epsilon": positive,
    "momentum": share,
    "statistics": lambda who, name, value: one_of(who, name, value, get_args(Statistics)),
    "ddof": lambda who, name, value: one_of(who, name, value, (0, 1)),
    "virtual_batch_size": positive_int_or_none,
}
"""By attribute: what the constructor and whoever sets one later go through."""


class SkippedUpdates(nnx.BatchStat[Any]):
    """How many updates the guard left out for each channel: a diagnostic, not a part of the statistics.

    A type of its own, so that a filter can leave it out of what is saved:
    ``nnx.state(model, nnx.Not(SkippedUpdates))``.
    """


class BatchNorm(nnx.BatchNorm):
    """Batch normalization over every axis but ``axis``.

    In training ``y = scale * (x - batch_mean) / sqrt(batch_variance + epsilon) + bias``, and the moving statistics
    follow the batch; with ``use_running_average=True`` the moving statistics normalise and nothing changes.

    Parameters
    ----------
    num_features : int or tuple of int
        Channels: the length of ``axis``, or with several axes their lengths in the rising order of the axes.
    use_running_average : bool, optional
        Inference rather than training; ``train()``, ``eval()``, ``nnx.view`` and the call can change it. None: the
        call must say.
    axis : int or tuple of int
        The axis or axes that hold the channels.
    momentum : float
        The share of the old value that one update keeps (``decay`` elsewhere in this package), 0 to 1.
    epsilon : float
        Added to the variance inside the root; positive.
    dtype : dtype, optional
        Of the result; None: what input, parameters and statistics promote to.
    param_dtype : dtype
        Of scale and bias. The statistics are float32, or float64 where ``param_dtype`` is.
    use_bias, use_scale : bool
        Whether there is an addend and a multiplier.
    bias_init, scale_init : callable
        Initializers ``(key, shape, dtype) -> array``.
    axis_name : str, optional
        The axis of `jax.pmap`, `jax.shard_map` or `jax.vmap` whose devices share one batch.
    axis_index_groups : sequence of sequences of int, optional
        The indices along ``axis_name`` that share a batch; None is all of them.
    use_fast_variance : bool
        Accepted and without effect: the variance is always the stable one.
    promote_dtype : callable
        One that is not Flax' own has the last word on input, scale and bias before anything is computed.
    rngs : nnx.Rngs
        Random keys for the initializers.
    bias_metadata, scale_metadata : mapping
        Metadata of the two parameters (sharding, for example).
    statistics : {"moving", "debiased", "cumulative"}
        ``"moving"``: as Flax, the initial mean 0 and variance 1 leave the average at the pace of ``momentum**updates``.
        ``"debiased"``: they are taken out when inference reads the average, which is right from the first update on.
        ``"cumulative"``: the plain mean over all updates; ``momentum`` is not used.
    ddof : int
        The stored variance is divided by count - ddof; 0 as Flax, 1 as PyTorch.
    guard : bool
        Leave a channel's statistics alone where the batch's are NaN or infinite, and count it in ``skipped_updates``.
    virtual_batch_size : int, optional
        Normalise parts of the batch of this many samples each (the last may be smaller) with their own statistics, and
        update once a part.

    Raises
    ------
    ArgumentError
        At construction: epsilon not positive, momentum outside 0 to 1, unknown statistics, ddof, virtual batch size.
        At the call: a channel count or a rank that does not fit, a mask that does not broadcast, no
        ``use_running_average`` anywhere.
    TypeError
        Complex input; a mask of floating-point numbers.

    Notes
    -----
    State as in Flax: ``scale`` and ``bias`` (`nnx.Param`), ``mean`` and ``var`` (`nnx.BatchStat`), so weights and
    checkpoints go both ways with ``guard=False``. The guard adds ``skipped_updates`` (`SkippedUpdates`, a BatchStat),
    ``"debiased"`` adds ``remaining``, ``"cumulative"`` adds ``updates``.

    Computed in float32 at least, by the corrected two-pass (see `batchnorm.core.equations`); Flax' default,
    ``E[x^2] - E[x]^2``, gives 0 to 24 for a variance of 1 at mean 1e4. Devices on ``axis_name`` are merged by their
    counts; Flax weighs them equally, whatever the mask left of each. Under plain `jax.jit` with a sharded batch the
    statistics are those of the whole batch without any of this.

    The derivative is the closed form, as a `jax.custom_jvp`: `jax.grad`, `jax.jvp`, `jax.hessian` and their
    compositions hold. No gradient flows into the moving statistics.

    Examples
    --------
    >>> layer = BatchNorm(1, use_bias=False, epsilon=1e-3, rngs=nnx.Rngs(0))
    >>> layer(jnp.array([[1.0], [5.0]])).round(4).ravel().tolist()
    [-0.9998999834060669, 0.9998999834060669]
    """

    scale: nnx.Param[Any] | None
    bias: nnx.Param[Any] | None
    remaining: nnx.BatchStat[Any]
    updates: nnx.BatchStat[Any]
    skipped_updates: SkippedUpdates
    # The defaults are of the class: a layer holds only what it was given otherwise. Each attribute of a module costs
    # every call of `nnx.jit` a microsecond or two, in which it is sorted, hashed and compared.
    axis: int | tuple[int, ...] = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    axis_name: Any = None
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None
    use_fast_variance: bool = True
    promote_dtype: Any = staticmethod(dtypes.promote_dtype)
    statistics: Statistics = "moving"
    ddof: int = 0
    guard: bool = True
    virtual_batch_size: int | None = None
    frozen: bool = False

    def __init__(  # Flax' own is not called: it makes parameters of rank 1 only
        self,
        num_features: int | tuple[int, ...],
        *,
        use_running_average: bool | None = False,
        axis: int | tuple[int, ...] = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Any = ZEROS,
        scale_init: Any = ONES,
        axis_name: Any = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
        statistics: Statistics = "moving",
        ddof: int = 0,
        guard: bool = True,
        virtual_batch_size: int | None = None,
    ) -> None:
        self.num_features = num_features
        self.use_running_average = use_running_average
        groups = None if axis_index_groups is None else tuple(tuple(g) for g in axis_index_groups)
        self._set(axis=axis, momentum=momentum, epsilon=epsilon, dtype=dtype, param_dtype=param_dtype)
        self._set(use_bias=use_bias, use_scale=use_scale, axis_name=axis_name, axis_index_groups=groups)
        self._set(use_fast_variance=use_fast_variance, promote_dtype=promote_dtype)
        self._set(statistics=statistics, ddof=ddof, guard=guard, virtual_batch_size=virtual_batch_size)
        self._check()
        shape = self._channel_shape()
        self._make_statistics(shape)
        self.scale = (
            nnx.data(None) if not use_scale else _parameter(scale_init, rngs, shape, param_dtype, scale_metadata)
        )
        self.bias = nnx.data(None) if not use_bias else _parameter(bias_init, rngs, shape, param_dtype, bias_metadata)

    def _set(self, **options: Any) -> None:
        for name, value in options.items():
            default = getattr(type(self), name)
            if type(value) is not type(default) or value != default:
                setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        check = CHECKS.get(name)
        super().__setattr__(name, value if check is None else check(WHO, name, value))

    def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> jax.Array:
        """Normalise ``x``.

        Parameters
        ----------
        x : array
            Real numbers, the channels on ``axis``.
        use_running_average : bool, optional
            True normalises with the moving statistics; goes before the attribute. A frozen layer always does.
        mask : array of bool, optional
            True where an element counts in the batch statistics. The shape of ``x`` less its channel axes; else any
            shape that broadcasts to ``x``, as Flax has it, so it may differ from channel to channel. The first reading
            goes before the second where both fit. Masked positions are normalised like any other.

        Returns
        -------
        array
            The shape of ``x``.

        Notes
        -----
        A channel of which nothing is counted is normalised with the moving statistics and not updated (Flax: NaN). One
        counted element gives ``bias`` and no update (Flax drags the variance to 0). An empty batch changes nothing
        (Flax: NaN for good).
        """
        running = self._running(use_running_average)
        x = jnp.asarray(x)
        if jnp.iscomplexobj(x):
            raise TypeError(
                f"{WHO}: the input must hold real numbers; got dtype {x.dtype}. "
                "Pass real and imaginary parts as channels."
            )
        how = self._plan(x.shape)
        x, gamma, beta, dtype = self._promoted(x, how)
        if running or how.count == 0:
            return self._infer(x, gamma, beta, how).astype(dtype)
        return self._train(x, gamma, beta, how, mask).astype(dtype)

    def inference_statistics(self) -> tuple[jax.Array, jax.Array]:
        """Mean and variance that inference normalises with: ``mean``, ``var``; less the initial value if debiased."""
        state = {name: getattr(self, VARIABLES[name])[...] for name in training.state_names(self._rule())}
        return training.inference_statistics(jnp, self._rule(), state)

    def _train(self, x: Any, gamma: Any, beta: Any, how: Plan, mask: Any) -> Any:
        sync = None if self.axis_name is None else Sync(self.axis_name, self.axis_index_groups)
        if self.virtual_batch_size is not None and 0 in how.kept:
            raise ArgumentError(
                f"{WHO}: virtual_batch_size splits axis 0, which axis={self.axis} says holds channels for an input of "
                f"shape {x.shape}. Pass another axis."
            )
        self._warn_of_one_element(how, sync, x.shape)
        task = Task(how.reduced, self.epsilon, sync, self.virtual_batch_size)
        full = None if mask is None else full_mask(mask, x.shape, how, WHO)
        y, state, skipped = train(task, self._rule(), self._state(how), x, full, gamma, beta)
        for name, value in state.items():
            variable = getattr(self, VARIABLES[name])
            variable[...] = value.reshape(variable.shape)
        if self.guard:
            self.skipped_updates[...] += skipped.reshape(self.skipped_updates.shape)
        return y

    def _infer(self, x: Any, gamma: Any, beta: Any, how: Plan) -> Any:
        mean, variance = (value.reshape(how.broadcast_shape) for value in self.inference_statistics())
        return equations.normalized(jnp, x, mean, variance, gamma, beta, self.epsilon)

    def _rule(self) -> Rule:
        return Rule(self.epsilon, self.momentum, self.ddof, self.statistics, self.guard)

    def _state(self, how: Plan) -> dict[str, Any]:
        names = training.state_names(self._rule())
        return {name: getattr(self, VARIABLES[name])[...].reshape(how.broadcast_shape) for name in names}

    def _make_statistics(self, shape: tuple[int, ...]) -> None:
        dtype = jnp.promote_types(jnp.float32, self.param_dtype)
        for name, initial in training.state_names(self._rule()).items():
            setattr(self, VARIABLES[name], nnx.BatchStat(jnp.full(shape, initial, dtype)))
        if self.guard:
            self.skipped_updates = SkippedUpdates(jnp.zeros(shape, dtype))

    def _promoted(self, x: Any, how: Plan) -> tuple[Any, Any, Any, Any]:
        # Flax rounds the input to the result's type before it takes statistics. With Flax' own promote_dtype only the
        # result is rounded here.
        gamma = None if self.scale is None else self.scale[...]
        beta = None if self.bias is None else self.bias[...]
        arrays = (x, self.mean[...], self.var[...], gamma, beta)
        if self.promote_dtype is dtypes.promote_dtype:
            result = dtypes.canonicalize_dtype(*arrays, dtype=self.dtype)
        else:
            x, _, _, gamma, beta = self.promote_dtype(arrays, dtype=self.dtype)
            result = dtypes.canonicalize_dtype(x, gamma, beta, dtype=self.dtype)
        work = jnp.promote_types(jnp.promote_types(x.dtype, result), jnp.float32)
        gamma, beta = (None if p is None else p.astype(work).reshape(how.broadcast_shape) for p in (gamma, beta))
        return x.astype(work), gamma, beta, result

    def _running(self, given: bool | None) -> bool:
        if self.frozen:
            return True
        running = self.use_running_average if given is None else given
        if running is None:
            raise ArgumentError(
                f"{WHO}: use_running_average is None. Pass True (inference) or False (training) to the constructor or "
                "to the call, or use model.train(), model.eval() or nnx.view(model, use_running_average=...)."
            )
        return running

    def _plan(self, shape: tuple[int, ...]) -> Plan:
        how = plan(shape, self.axis, WHO)
        if how.channel_shape != self._channel_shape():
            raise ArgumentError(
                f"{WHO}: num_features is {self.num_features}, but an input of shape {shape} has {how.channel_shape} on "
                f"axis {self.axis}. Pass the axis that holds the channels, or their number."
            )
        return how

    def _channel_shape(self) -> tuple[int, ...]:
        return tuple(self.num_features) if isinstance(self.num_features, tuple | list) else (self.num_features,)

    def _check(self) -> None:
        if self.virtual_batch_size is not None and self.axis_name is not None:
            raise ArgumentError(
                f"{WHO}: virtual_batch_size splits a batch and axis_name joins batches; got both "
                f"({self.virtual_batch_size} and {self.axis_name!r}). Pass one of them."
            )
        if len(self._channel_shape()) != (1 if isinstance(self.axis, int) else len(self.axis)):
            raise ArgumentError(
                f"{WHO}: num_features must give one length for each axis; got {self.num_features} for axis {self.axis}."
            )
        for length in self._channel_shape():
            non_negative_int(WHO, "num_features", length)

    def _warn_of_one_element(self, how: Plan, sync: Sync | None, shape: tuple[int, ...]) -> None:
        count = how.count * (sync.size if sync else 1)
        if self.virtual_batch_size is not None:
            count = count // shape[0] * min(self.virtual_batch_size, shape[0])
        if count == 1:
            warnings.warn(
                f"{WHO}: one element per channel in training: the output is the bias and the statistics stay as they "
                "are. Use a larger batch, or use_running_average=True.",
                stacklevel=4,
            )


def _parameter(init: Any, rngs: nnx.Rngs, shape: tuple[int, ...], dtype: Any, metadata: Mapping[str, Any]) -> Any:
    return nnx.Param(init(rngs.params(), shape, dtype), **metadata)
