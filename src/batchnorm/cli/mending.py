"""A model made simpler or still: fold, freeze and unfreeze."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .options import MODEL_HELP, busy, model_options, opened, output_options, show, stdout_kept
from .program import CLEAN, FINDINGS, program

FILES = "What is folded: .onnx, .keras, .h5 and .pt2 files; live models in Python, with bn.fold(model).result."


def written(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the result goes."""
    command = click.option("--force", is_flag=True, help="Replace the file of -o.")(command)
    return click.option("-o", "out", metavar="OUT", required=True, help="The file that is written.")(command)


@program.command("fold", epilog=f"{MODEL_HELP}\n{FILES}")
@model_options
@written
@click.option(
    "--data",
    metavar="FILE",
    help="Inputs of the model for the proof, beside random ones: .npy, .npz, or package.module:name.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random inputs.")
@click.option("--skip", metavar="A,B", help="Layers that are left as they are.")
@output_options
def fold_command(
    model: str,
    eps: float | str | None,
    trust: bool,
    weights: str | None,
    out: str,
    force: bool,
    data: str | None,
    seed: int,
    skip: str | None,
    form: str,
    as_json: bool,
    wide: bool,
) -> int:
    """Fold batch normalizations into the layers beside them, and prove that the outputs stay.

    Both models are run on random inputs, and on --data; where their outputs differ by more than rounding, nothing is
    written. Exit status 1 if a layer could not be folded, or the proof failed.
    """
    from batchnorm.api import inputs
    from batchnorm.api.folding import fold

    with stdout_kept(), busy("Folding", True):
        found = fold(
            opened(model, eps, trust, weights),
            out,
            data=None if data is None else inputs.model_batches(data),
            seed=seed,
            skip=[name.strip() for name in skip.split(",")] if skip else (),
            force=force,
            epsilon=eps,
        )
    show(found, form, as_json, wide)
    return CLEAN if found.holds and not found.refused else FINDINGS


@program.command("freeze", epilog=MODEL_HELP)
@click.argument("model")
@written
@output_options
def freeze_command(model: str, out: str, force: bool, form: str, as_json: bool, wide: bool) -> int:
    """Let every batch normalization keep its statistics, in a copy in which nothing else is changed.

    A .keras file: trainable becomes False. An .onnx file: training mode becomes inference. Exit status 1 if nothing was
    changed.
    """
    from batchnorm.api.freezing import freeze

    with stdout_kept():
        found = freeze(opened(model), out, force=force)
    show(found, form, as_json, wide)
    return CLEAN if found.changed else FINDINGS


@program.command("unfreeze", epilog=MODEL_HELP)
@click.argument("model")
@written
@output_options
def unfreeze_command(model: str, out: str, force: bool, form: str, as_json: bool, wide: bool) -> int:
    """Undo freeze in a copy of a .keras file: trainable becomes True.

    Exit status 1 if nothing was changed.
    """
    from batchnorm.api.freezing import unfreeze

    with stdout_kept():
        found = unfreeze(opened(model), out, force=force)
    show(found, form, as_json, wide)
    return CLEAN if found.changed else FINDINGS
