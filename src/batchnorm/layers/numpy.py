"""The layer on NumPy arrays: Keras' BatchNormalization without a framework, with an explicit way back."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm.core.arrays import QUIET, as_float, prepare, result_dtype
from batchnorm.core.equations import Moments
from batchnorm.core.plan import Plan, plan
from batchnorm.core.training import update
from batchnorm.errors import ArgumentError, BatchnormError

from . import fitting, fused, passes
from .fitting import SGD
from .fused import FusedTape
from .passes import Part, Tape
from .weighted import Weighted

__all__ = ["BatchNormalization", "ParameterGradients"]

Array = NDArray[Any]


class ParameterGradients(NamedTuple):
    """Gradients of gamma and beta, of the channels' shape in float64; None for the one the layer does not have."""

    gamma: Array | None
    beta: Array | None


class BatchNormalization(Weighted):
    """Batch normalization of NumPy arrays: ``y = gamma * (x - mean) / sqrt(variance + epsilon) + beta``.

    With ``training=True`` mean and variance are the batch's own, and the moving statistics follow them:
    ``moving = momentum * moving + (1 - momentum) * batch``. Otherwise they are the moving statistics.

    Parameters
    ----------
    axis : int or sequence of int
        The axis or axes that hold the channels; statistics are taken over all others. With several, gamma, beta and
        the statistics have the lengths of those axes, in rising order.
    momentum : float
        Share of the old value that one update keeps, 0 to 1 (1 - PyTorch's momentum). ``"cumulative"`` ignores it.
    epsilon : float
        Added to the variance inside the root; positive.
    center, scale : bool
        Whether there is a beta, a gamma.
    statistics : {"moving", "debiased", "cumulative"}
        ``"moving"``: Keras' way, after t updates ``momentum**t`` of the initial 0 and 1 is still in the average.
        ``"debiased"``: inference takes the initial value out, so that the statistics are right from the first update.
        ``"cumulative"``: the plain mean over all updates.
    ddof : {0, 1}
        The stored variance is divided by count - ddof; the batch is always normalised with divisor count.
    guard : bool
        Leave a channel's statistics alone where the batch's are NaN or infinite, and count it in `skipped_updates`.
    virtual_batch_size : int, optional
        In training, normalise every so many samples (axis 0) on their own, and update once for each such part; the
        last part may be smaller. None takes the batch as a whole.
    renorm : bool
        Batch renormalization (arXiv:1702.03275): in training ``y = gamma * (x_hat * r + d) + beta``.
    renorm_clipping : mapping, optional
        Limits ``rmin``, ``rmax`` of r and ``dmax`` of abs(d); a missing one does not clip.
    renorm_momentum : float
        As momentum, for the averages that renorm corrects towards.
    name : str
        Stands in messages.
    trainable : bool
        False freezes the layer, also as an attribute set later: inference statistics, no update, whatever `training`.
    dtype : {"float32", "float64"}
        Type of the weights. The output has the type of the input; the arithmetic is float64 for every input.

    Attributes
    ----------
    gamma, beta : array or None
        Parameters, of the channels' shape; None where absent or not built yet.
    moving_mean, moving_variance : array or None
        The statistics as stored (before any debiasing).
    gradients : ParameterGradients or None
        What the last `backward` left.
    updates : int or None
        Updates of the statistics made so far, one for each (virtual) batch; None once `set_weights` has brought in
        statistics whose history is not known. Not a weight.
    skipped_updates : array of int or None
        Per channel, the updates the guard left out. Not a weight.

    Raises
    ------
    ArgumentError
        An argument out of its range. Keras accepts an epsilon below 0 and a momentum above 1 in silence.

    Notes
    -----
    Differs from Keras where Keras' statistics go wrong: an empty batch, a batch of one element per channel (output
    beta, one warning) and one that is masked throughout (moving statistics normalise) leave the statistics alone; a
    NaN does not stay for good. PyTorch raises on one element per channel, and stores the variance with ddof=1.

    Examples
    --------
    >>> layer = BatchNormalization(center=False)
    >>> layer(np.array([[1.0], [5.0]]), training=True).round(4).ravel()
    array([-0.9999,  0.9999])
    >>> layer.moving_mean, layer.moving_variance
    (array([0.03], dtype=float32), array([1.03], dtype=float32))
    """

    gradients: ParameterGradients | None = None
    _tapes: list[tuple[slice, Tape]] | FusedTape | None = None
    _output: tuple[tuple[int, ...], Any] = ((), None)
    _warned = False

    def __call__(self, x: ArrayLike, training: bool = False, mask: ArrayLike | None = None) -> Array:
        """Normalise ``x``; in training also update the statistics. Keeps what `backward` needs.

        Parameters
        ----------
        x : array_like
            Any rank from 1; integers count as float64.
        training : bool
            Normalise with the batch's own statistics. Without effect on a frozen layer.
        mask : array_like of bool, optional
            True where an element counts in the statistics: the shape of ``x`` less its channel axes, or the rank of
            ``x`` with 1 there. Masked positions are normalised like any other.

        Returns
        -------
        array
            The shape and dtype of ``x`` (float64 for integers).

        Raises
        ------
        ArgumentError
            Another number of channels than the layer was built for; a mask that does not broadcast.
        TypeError
            Complex or non-numeric input, a mask that is not boolean.

        Notes
        -----
        Batches of 32768 elements and more are taken by the compiled kernels where Numba is installed (docs/NUMERICS.md
        has their bounds); `backward` then reads ``x`` again, so it must not be changed before.
        """
        learn = bool(training) and self.trainable
        fast = self._run_fused(x, learn, mask)
        y, self._tapes = self._run(x, learn, mask) if fast is None else fast
        self._output = (y.shape, y.dtype)
        tapes = [self._tapes] if isinstance(self._tapes, FusedTape) else [tape for _, tape in self._tapes]
        if not self._warned and any(tape.count == 1 for tape in tapes):
            self._warned = True
            warnings.warn(
                f"{self.name}: training on one element per channel (input of shape {y.shape}): its variance is 0, so "
                "the output is beta whatever the input, and the moving statistics were left as they are. Use a larger "
                "batch. This is said once.",
                stacklevel=2,
            )
        return y

    @np.errstate(**QUIET)
    def backward(self, grad: ArrayLike) -> Array:
        """The gradient of the loss with respect to the input of the last call; leaves `gradients`.

        In training the gradient flows through the batch's mean and variance too (through r and d of renorm it does
        not); in inference the statistics are constants.

        Parameters
        ----------
        grad : array_like
            Gradient of the loss with respect to the output; its shape.

        Returns
        -------
        array
            The shape and dtype of the output.

        Raises
        ------
        ArgumentError
            A gradient of another shape.
        BatchnormError
            The layer was not called before.
        """
        if self._tapes is None:
            raise BatchnormError(f"{self.name}: backward needs a forward pass first. Call the layer on a batch.")
        shape, dtype = self._output
        upstream = as_float(grad, self.name)
        if upstream.shape != shape:
            raise ArgumentError(f"{self.name}: grad must have the shape of the output, {shape}; got {upstream.shape}.")
        if isinstance(self._tapes, FusedTape):
            dx, dbeta, dgamma = fused.backward(self._tapes, upstream)
            self.gradients = ParameterGradients(dgamma if self.scale else None, dbeta if self.center else None)
            return dx
        upstream = upstream.astype(np.float64)
        dx = np.empty(shape, dtype)
        sums = np.zeros((2, *self._state["moving_mean"].shape))
        for rows, tape in self._tapes:
            dx[rows], *of_parameters = passes.backward(tape, upstream[rows])
            sums += [one.reshape(sums.shape[1:]) for one in of_parameters]
        self.gradients = ParameterGradients(sums[0] if self.scale else None, sums[1] if self.center else None)
        return dx

    def _run(self, x: ArrayLike, learn: bool, mask: ArrayLike | None) -> tuple[Array, list[tuple[slice, Tape]]]:
        with np.errstate(**QUIET):
            wide, how, counted = prepare(x, self.axis, mask, self.name)
            self._accept(wide.shape, how)
            y = np.empty(wide.shape, result_dtype(x))
            tapes: list[tuple[slice, Tape]] = []
            for rows in self._parts(wide.shape, how, learn):
                part = _part(wide[rows], self.axis, None if counted is None else counted[rows], self.name)
                y[rows], tape = self._pass(part, learn and part.count > 0)
                tapes.append((rows, tape))
            return y, tapes

    def _run_fused(self, x: ArrayLike, learn: bool, mask: ArrayLike | None) -> tuple[Array, FusedTape] | None:
        """By the compiled kernels: large batches with one channel axis, taken as a whole."""
        call = fused.call_of(x, self.axis, mask, self._rule, self.name)
        if call is None:
            return None
        shape = call.x.shape
        self._accept(shape, call.how)
        if len(self._parts(shape, call.how, learn)) > 1:
            return None
        if not learn or (call.mask is not None and not call.mask.any()):
            return fused.infer(call, self._rule, self._state, self.gamma, self.beta)
        found = fused.train(call, self._rule, self.gamma, self.beta)
        if found is None:
            return None
        y, tape, batch = found
        if tape.count > 1:
            with np.errstate(**QUIET):
                self._learn(batch)
        return y, tape

    def _pass(self, part: Part, learn: bool) -> tuple[Array, Tape]:
        shape = part.how.broadcast_shape
        gamma, beta = (None if one is None else _wide(one, shape) for one in (self.gamma, self.beta))
        state = {name: _wide(one, shape) for name, one in self._state.items()}
        if not learn:
            return passes.forward_inference(part, self._rule, state, gamma, beta)
        y, tape, batch = passes.forward_training(part, self._rule, state, gamma, beta)
        if part.count > 1:
            self._learn(batch)
        return y, tape

    def _learn(self, batch: Moments) -> None:
        # In the weights' own type, as Keras does it: what overflows there is an infinity, which the guard then sees.
        shape = self._state["moving_mean"].shape
        mean, variance = (one.astype(self.dtype).reshape(shape) for one in (batch.mean, batch.variance))
        self._state, skipped = update(np, self._rule, self._state, Moments(batch.count, mean, 0.0, variance))
        self.skipped_updates = self.skipped_updates + skipped
        if self.updates is not None and not np.all(skipped):
            self.updates += 1

    def _parts(self, shape: tuple[int, ...], how: Plan, learn: bool) -> list[slice]:
        size = self.virtual_batch_size
        if size is not None and 0 in how.kept:
            raise ArgumentError(
                f"{self.name}: virtual_batch_size splits axis 0, which holds the channels here (axis {self.axis}, "
                f"input of shape {shape}). Put the samples on axis 0, or leave virtual_batch_size out."
            )
        if size is None or not learn or shape[0] <= size:
            return [slice(None)]
        return [slice(start, start + size) for start in range(0, shape[0], size)]

    # -- a small loop --------------------------------------------------------------------------------------------

    def fit(
        self,
        x: ArrayLike,
        y: ArrayLike,
        epochs: int = 1,
        batch_size: int = 32,
        optimizer: SGD | None = None,
        loss: str = "mse",
        shuffle: bool = True,
        seed: int | None = None,
    ) -> list[float]:
        """Learn gamma and beta by gradient descent, while the statistics follow the batches.

        Parameters
        ----------
        x, y : array_like
            Inputs and targets of one shape, samples on axis 0.
        epochs, batch_size : int
            Passes over the data; samples a step (the last step of an epoch takes what is left).
        optimizer : SGD, optional
            None is ``SGD(0.01)``.
        loss : {"mse"}
            Mean of the squared differences over all elements of the batch, as in Keras.
        shuffle : bool
            Draw a new order of the samples in every epoch.
        seed : int, optional
            Of that order; None draws one.

        Returns
        -------
        list of float
            The loss of each epoch: the mean over its samples, each taken before its step.

        Raises
        ------
        ArgumentError
            Shapes that differ, no samples, an argument out of its range.

        Notes
        -----
        The same steps as ``keras.Sequential([layer])`` with ``compile("sgd", "mse")`` and ``fit``: the weights agree
        to 2e-6 after 100 steps (docs/NUMERICS.md).
        """
        return fitting.fit(self, x, y, epochs, batch_size, optimizer or SGD(), loss, shuffle, seed)

    def predict(self, x: ArrayLike) -> Array:
        """Inference: as ``layer(x)``, but what `backward` needs of the last call stays."""
        fast = self._run_fused(x, learn=False, mask=None)
        return self._run(x, learn=False, mask=None)[0] if fast is None else fast[0]


def _part(values: Array, axis: int | tuple[int, ...], counted: Array | None, name: str) -> Part:
    how = plan(values.shape, axis, name)
    return Part(values, how, counted, how.count if counted is None else int(np.sum(counted)))


def _wide(one: Array, shape: tuple[int, ...]) -> Array:
    return one.astype(np.float64).reshape(shape)
