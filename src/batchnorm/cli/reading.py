"""One model read: list and explain."""

from __future__ import annotations

from typing import Any

import click

from .options import MODEL_HELP, busy, model_options, opened, output_options, show, stdout_kept
from .program import CLEAN, program


@program.command("list", epilog=MODEL_HELP)
@model_options
@click.option("--arrays", is_flag=True, help="With gamma, beta and the moving statistics (JSON).")
@output_options
def list_command(
    model: str,
    eps: float | str | None,
    trust: bool,
    weights: str | None,
    arrays: bool,
    form: str,
    as_json: bool,
    wide: bool,
) -> int:
    """Every batch normalization of MODEL in a row, with its worst sign."""
    from batchnorm.api.loading import list_layers

    with stdout_kept():
        found = list_layers(opened(model, eps, trust, weights), epsilon=eps, arrays=arrays)
    show(found, form, as_json, wide)
    return CLEAN


@program.command("explain", epilog=MODEL_HELP)
@model_options
@click.option("--layer", metavar="NAME", help="The layer, or an unambiguous tail of its name.")
@click.option("--channel", type=int, metavar="K", help="Only this channel.")
@click.option("--x", metavar="VALUES|FILE.npy", help="The input of the LAYER: 1,5 or [[1], [5]] or an array file.")
@click.option(
    "--data",
    metavar="FILE",
    help="The input of the MODEL, run up to the layer: .npy, .npz, or package.module:name, an iterable of batches.",
)
@click.option("--at", metavar="INDEX", help="Only what lies at this index of the layer's input, batch first: 0,3,3.")
@click.option("--limit", type=int, default=20, show_default=True, help="At most so many values and channels.")
@click.option("--mode", type=click.Choice(["inference", "training"]), default="inference", help="Which statistics.")
@click.option("--expect", metavar="VALUES", help="What you expected; every reading that gives it is named.")
@click.option("--updates", type=int, metavar="N", help="How often the statistics were updated, if you know better.")
@output_options
def explain_command(
    model: str,
    eps: float | str | None,
    trust: bool,
    weights: str | None,
    x: str | None,
    data: str | None,
    at: str | None,
    expect: str | None,
    form: str,
    as_json: bool,
    wide: bool,
    **asked: Any,
) -> int:
    """Why is this the output? The arithmetic with its numbers, and what to do.

    Without --x and --data: every layer's verdict, then the worst channel of the worst layer worked through.
    """
    from batchnorm.api import inputs
    from batchnorm.api.explaining import explain

    with stdout_kept(), busy("Running the model", data is not None):
        found = explain(
            opened(model, eps, trust, weights),
            None if x is None else inputs.values(x, "--x"),
            data=None if data is None else inputs.model_stream(data),
            at=None if at is None else inputs.index(at),
            expect=None if expect is None else inputs.values(expect, "--expect"),
            epsilon=eps,
            **asked,
        )
    show(found, form, as_json, wide)
    return CLEAN
