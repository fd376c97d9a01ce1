"""New statistics for a model: ``bn.recalibrate``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from batchnorm.analysis import recalibration
from batchnorm.core import output
from batchnorm.core.record import LayerRecord
from batchnorm.errors import ArgumentError, Refused

from .loading import load
from .progress import Progress, Silent
from .recalibrated import Recalibration
from .recalibration_options import METHODS, Options, Outcome, notes_of_mark
from .recalibration_pass import from_data
from .recalibration_targets import left_alone, listed_reasons, opened_model
from .recalibration_writing import put, result
from .streams import Stream

__all__ = ["recalibrate"]

UNREACHED = "not reached by this data"


def recalibrate(
    model: Any,
    data: Any = None,
    *,
    method: str = "one-pass",
    batch_size: int = 128,
    labels: Any = None,
    debias: bool = False,
    updates: int | None = None,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    skip_nonfinite: bool = False,
    workers: int | None = None,
    ray: str | None = None,
    process_group: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    epsilon: float | None = None,
    progress: Progress | None = None,
) -> Recalibration:
    """Give the batch normalizations of a model new moving statistics, from data or by taking their initial value out.

    ``"one-pass"``: ``mean, variance`` of what each layer gets in training mode, the batches merged by count with the
    distance of their means. ``"sequential"``: those of what it gets in inference mode, layer by layer, once all layers
    before it hold their new ones. ``debias``: ``(moving - w*initial)/(1 - w)`` with ``w = decay**updates``.

    Parameters
    ----------
    model : path or object
        A file, which is copied to ``out`` with its new statistics; or a live ``keras.Model``, ``torch.nn.Module``,
        ``nnx.Module`` or `BatchNormalization`, which is changed in place, or, with ``out``, left as it is and written
        there.
    data : array, dict of arrays, iterable of batches, or function that returns one
        A batch is an array, a dict of named inputs, or a tuple ``(x, labels)``. Named inputs ``mask`` (1 where there is
        data, one row a sample) or ``lengths`` that are none of the model's tell of padding, which is not counted.
    method : {"one-pass", "sequential"}
        See above. Sequential runs the data once for each level of layers that do not feed each other, and stops at the
        layers it measures.
    batch_size : int
        Of batches that are cut from arrays. In one pass it is the size of the training that is imitated.
    labels : array, optional
        One a sample, for the accuracy before and after, where data are arrays.
    debias : bool
        Take the initial value out; needs no data.
    updates : int, optional
        How often the statistics were updated, where the file does not tell.
    out : path, optional
        Where the result is written; without it a file's new statistics are only reported.
    force : bool
        Replace an existing ``out``.
    only, skip : sequence of str
        Layers, by their names or unambiguous tails, that alone are touched, or left alone.
    skip_nonfinite : bool
        Leave out samples that hold a NaN or an infinity.
    workers, ray : int, str, optional
        Spread the data over so many processes of this machine, or over the Ray cluster at that address.
    process_group : torch.distributed.ProcessGroup, optional
        Inside a training job: each rank gives its own part of the data, and all get the same statistics.
    checkpoint : path, optional
        Where a long run keeps how far it has come, and goes on from if it is there.
    weights : path, optional
        A state dict that is loaded into ``model`` first; ``out`` is then a copy of it.
    epsilon : float, optional
        As in `load`.
    progress : Progress, optional
        Told what will be done and how far it has come.

    Returns
    -------
    Recalibration
        Statistics before and after, the gap between training and inference mode before and after, the accuracy.

    Raises
    ------
    ArgumentError
        No data, too little, not finite (the sample is named), of the wrong shape, changing between passes; a bad path.
    Refused
        A layer that feeds itself and does not come to rest; a counter in doubt, a variance that would turn negative.
    NoBatchNorm, UnknownLayer, ModelFileError
        As in `load`.

    Notes
    -----
    Moments are computed by the corrected two-pass in the engine and merged in float64. Dropout and other noise are
    off, frozen layers stay as they are, and the stored variance has the divisor of the format. What a layer's own mask
    leaves out is not counted, nor is padding that the data tell of, where it lies along the layer's input (BN406); in
    training mode the batch is then normalised with what is left. ``.notes`` names the layers where it does not.
    Whatever goes wrong, and Ctrl-C, leave model and files as they were.

    Examples
    --------
    >>> found = recalibrate(model, loader, method="sequential")  # doctest: +SKIP
    >>> found.gap.before, found.gap.after  # doctest: +SKIP
    (0.83, 0.02)
    """
    options = Options(
        method=method,
        batch_size=batch_size,
        skip_nonfinite=skip_nonfinite,
        workers=workers,
        ray=ray,
        process_group=process_group,
        checkpoint=checkpoint,
        progress=progress or Silent(),
    )
    _check(options, data, debias)
    read = opened_model(model, weights, epsilon)
    template: Any = None if weights is None else load(weights)
    if out is not None:
        source = read.path if template is None else template.path
        output.check(out, source=source, force=force)
        output.check_same_format(out, source)
    reasons = left_alone(read, only, skip)
    records = [record.with_updates(updates, "option") for record in read.layers if record.name not in reasons]
    if not records:
        raise Refused(f"recalibrate: no layer is left to recalibrate: {listed_reasons(reasons)}.")
    if debias:
        done = _debiased(records)
    else:
        done = from_data(model, read, records, _stream_of(data, labels, options), options)
    new = {name: (each.mean, each.variance) for name, each in done.found.items()}
    how = "debias" if debias else method
    put(read, template, new, out, force, how)
    done.finish()
    reasons |= {**done.nothing, **dict.fromkeys(done.unreached, UNREACHED)}
    done = replace(done, notes=(*notes_of_mark(read, out), *done.notes))
    return result(model, read, done, reasons, out, how)


def _check(options: Options, data: Any, debias: bool) -> None:
    if options.method not in METHODS:
        raise ArgumentError(f"recalibrate: method must be one-pass or sequential; got {options.method!r}.")
    if debias and data is not None:
        raise ArgumentError("recalibrate: give data, or debias, which needs none; not both.")
    if not debias and data is None:
        raise ArgumentError("recalibrate: no data. Give training data with --data, or take the initial value out with "
                            "--debias, which needs none.")  # fmt: skip
    if sum(each is not None for each in (options.workers, options.ray, options.process_group)) > 1:
        raise ArgumentError("recalibrate: give one of workers, ray and process_group.")
    if options.workers is not None and options.workers < 1:
        raise ArgumentError(f"recalibrate: workers must be at least 1; got {options.workers}.")


def _stream_of(data: Any, labels: Any, options: Options) -> Stream:
    return Stream(
        data,
        options.batch_size,
        labels,
        skip_nonfinite=options.skip_nonfinite,
        may_be_empty=options.process_group is not None,
    )


def _debiased(records: Sequence[LayerRecord]) -> Outcome:
    found, nothing = recalibration.debiased(records)
    if not found:
        raise Refused(f"recalibrate --debias: there is no initial value to take out: {listed_reasons(nothing)}.")
    return Outcome(found, nothing=nothing)
