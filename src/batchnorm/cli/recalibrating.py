"""New statistics: recalibrate."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from .options import MODEL_HELP, model_options, not_over, output_options, show, stdout_kept
from .program import CLEAN, FINDINGS, program

DATA_HELP = ".npy, .npz, or package.module:name, an iterable of batches: arrays, tuples (x, labels), dicts of inputs."
PADDING_HELP = "Named inputs mask (1 where there is data) or lengths tell of padding, which is not counted."


@program.command("recalibrate", epilog=MODEL_HELP)
@model_options
@click.option("--data", metavar="FILE", help=f"Training data: {DATA_HELP} {PADDING_HELP}")
@click.option("--labels", metavar="FILE.npy", help="One a sample: the accuracy before and after.")
@click.option("--batch-size", type=int, default=128, show_default=True, help="Of batches cut from an array.")
@click.option(
    "--method",
    type=click.Choice(["one-pass", "sequential"]),
    default="one-pass",
    show_default=True,
    help="Training-mode statistics; or, layer by layer, exactly what each gets in inference mode.",
)
@click.option("--debias", is_flag=True, help="Take the initial value out instead; needs no data.")
@click.option("--updates", type=int, metavar="N", help="With --debias: how often the statistics were updated.")
@click.option("-o", "--output", "out", metavar="OUT", required=True, help="Where the recalibrated model is written.")
@click.option("--force", is_flag=True, help="Replace an existing OUT.")
@click.option("--only", multiple=True, metavar="NAMES", help="Only these layers; commas between them, or again.")
@click.option("--skip", multiple=True, metavar="NAMES", help="Not these layers.")
@click.option("--skip-nonfinite", is_flag=True, help="Leave out samples with a NaN or an infinity in them.")
@click.option("--workers", type=int, metavar="N", help="Spread the data over N processes of this machine (Ray).")
@click.option("--ray", metavar="ADDRESS", help="Spread the data over a Ray cluster.")
@click.option("--checkpoint", metavar="FILE", help="Keep here how far the run has come, and go on from there.")
@output_options
def recalibrate_command(
    model: str,
    eps: float | None,
    trust: bool,
    weights: str | None,
    data: str | None,
    labels: str | None,
    only: Sequence[str],
    skip: Sequence[str],
    form: str,
    as_json: bool,
    wide: bool,
    **asked: Any,
) -> int:
    """Give MODEL's batch normalizations new statistics, in a copy at OUT.

    From data, in one pass of training mode or layer by layer; or, with --debias, by taking their initial value out.
    Exit status 1 if the data did not reach every layer.
    """
    from batchnorm.api import inputs
    from batchnorm.api.progress import Terminal
    from batchnorm.api.recalibrating import recalibrate

    not_over(asked["out"], data, labels)
    progress = Terminal()
    with stdout_kept(), contextlib.closing(_Ending(progress)):
        found = recalibrate(
            subject(model, eps, trust),
            None if data is None else inputs.model_batches(data, again=True),
            labels=None if labels is None else inputs.array_file(labels, "--labels"),
            weights=weights,
            epsilon=eps,
            only=_names(only),
            skip=_names(skip),
            progress=progress,
            **asked,
        )
    show(found, form, as_json, wide)
    return FINDINGS if found.is_partial else CLEAN


def subject(model: str, eps: float | None, trust: bool) -> Any:
    """MODEL as typed; a file that needs trust is opened here."""
    from .options import opened

    return opened(model, eps, trust)


class _Ending:
    def __init__(self, progress: Any) -> None:
        self._progress = progress

    def close(self) -> None:
        self._progress.end()
        sys.stderr.flush()


def _names(given: Sequence[str]) -> list[str]:
    return [name.strip() for each in given for name in each.split(",") if name.strip()]


@program.command("collect", epilog=MODEL_HELP)
@model_options
@click.option("--data", metavar="PART", required=True, help="This machine's part of the data, as in recalibrate.")
@click.option("--batch-size", type=int, default=128, show_default=True, help="Of batches cut from an array.")
@click.option("--method", type=click.Choice(["one-pass", "sequential"]), default="one-pass", help="As in recalibrate.")
@click.option("--level", type=int, default=1, show_default=True, help="With sequential: which level of layers.")
@click.option("-o", "--output", "out", metavar="SHARD", required=True, help="Where the moments are written (JSON).")
@click.option("--force", is_flag=True, help="Replace an existing SHARD.")
@click.option("--only", multiple=True, metavar="NAMES", help="Only these layers; commas between them, or again.")
@click.option("--skip", multiple=True, metavar="NAMES", help="Not these layers.")
@click.option("--skip-nonfinite", is_flag=True, help="Leave out samples with a NaN or an infinity in them.")
def collect_command(
    model: str,
    eps: float | None,
    trust: bool,
    data: str,
    only: Sequence[str],
    skip: Sequence[str],
    **asked: Any,
) -> int:
    """Measure one PART of the data, for merge: recalibration by hand on any number of machines."""
    from batchnorm.api import inputs
    from batchnorm.api.progress import Terminal
    from batchnorm.api.shards import collect

    not_over(asked["out"], data)
    progress = Terminal()
    with stdout_kept(), contextlib.closing(_Ending(progress)):
        given = subject(model, eps, trust)
        collect(
            given,
            inputs.model_batches(data, again=True),
            epsilon=eps,
            only=_names(only),
            skip=_names(skip),
            progress=progress,
            **asked,
        )
    return CLEAN


@program.command("merge", epilog=MODEL_HELP)
@model_options
@click.argument("shards", nargs=-1, required=True, metavar="SHARD...")
@click.option("-o", "--output", "out", metavar="OUT", required=True, help="Where the recalibrated model is written.")
@click.option("--force", is_flag=True, help="Replace an existing OUT.")
@output_options
def merge_command(
    model: str,
    eps: float | None,
    trust: bool,
    weights: str | None,
    shards: Sequence[str],
    out: str,
    force: bool,
    form: str,
    as_json: bool,
    wide: bool,
) -> int:
    """Join the SHARDs of collect, and give MODEL their statistics, in a copy at OUT."""
    from batchnorm.api.shards import merge

    with stdout_kept():
        found = merge(subject(model, eps, trust), shards, out, force=force, weights=weights, epsilon=eps)
    show(found, form, as_json, wide)
    return CLEAN
