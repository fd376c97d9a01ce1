"""One against another: diff and verify."""

from __future__ import annotations

from typing import Any

import click

from .options import EPSILON, MODEL_HELP, busy, model_options, opened, output_options, show, stdout_kept
from .program import CLEAN, FINDINGS, program


@program.command("diff", epilog=MODEL_HELP)
@click.argument("a")
@click.argument("b")
@click.option("--eps", type=EPSILON, metavar="E|hint|FILE", help="The epsilon, where a file holds none.")
@click.option("--trust", is_flag=True, help="Read TorchScript, whose loader runs code of the file.")
@output_options
def diff_command(a: str, b: str, eps: float | str | None, trust: bool, form: str, as_json: bool, wide: bool) -> int:
    """What differs between models A and B, and how far it moves the output.

    Layers are paired across formats by values, names and order. Exit status 1 if anything differs that changes an
    output. Nothing is run.
    """
    from batchnorm.api.comparing import diff

    with stdout_kept():
        found = diff(opened(a, eps, trust), opened(b, eps, trust), epsilon=eps)
    show(found, form, as_json, wide)
    return FINDINGS if found.changes_output else CLEAN


@program.command("verify", epilog=MODEL_HELP)
@model_options
@click.argument("other", required=False)
@click.option("--layer", metavar="NAME", help="Only this layer: its name, or an unambiguous tail of it.")
@click.option("--x", metavar="VALUES|FILE.npy", help="The input of the LAYER: 1,5 or [[1], [5]] or an array file.")
@click.option(
    "--data",
    metavar="FILE",
    help="The input of the MODEL, run batch by batch: .npy, .npz, or package.module:name, an iterable of batches.",
)
@click.option("--random", type=int, default=64, show_default=True, help="Samples drawn with the layer's statistics.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn.")
@click.option("--engines", metavar="A,B", help="Only these; one that is not installed is a failure.")
@click.option("--atol", type=float, help="Allow this much instead of the derived bound.")
@click.option("--rtol", type=float, help="And this share of the reference.")
@click.option("--save-inputs", metavar="FILE.npz", help="Write what the layers were fed.")
@click.option("--load-inputs", metavar="FILE.npz", help="Feed the layers from such a file.")
@click.option("--batch-size", type=int, default=8, show_default=True, help="Samples run at once.")
@click.option("--timeout", type=float, default=300.0, show_default=True, help="Seconds an engine may take to answer.")
@click.option("--force", is_flag=True, help="Replace an existing file of --save-inputs.")
@output_options
def verify_command(
    model: str,
    other: str | None,
    eps: float | str | None,
    trust: bool,
    weights: str | None,
    x: str | None,
    data: str | None,
    engines: str | None,
    form: str,
    as_json: bool,
    wide: bool,
    **asked: Any,
) -> int:
    """Whether every engine computes what the model's batch normalizations should give.

    Each is held against the float64 formula, on the input that reaches it (--data), on --x, or on numbers drawn with
    its statistics. With OTHER two models are compared layer by layer: the first layer where they part, and why. Exit
    status 1 if anything differs or fails.

    Engines: reference (float64), numpy, keras-tensorflow, keras-jax, keras-torch, keras-ops (the backend's function),
    tf.nn, torch, jax, flax, onnxruntime. Each framework runs in a process of its own.
    """
    from batchnorm.api import inputs
    from batchnorm.api.verifying import verify

    with stdout_kept(), busy("Asking the engines", True):
        found = verify(
            opened(model, eps, trust, weights),
            None if other is None else opened(other, eps, trust),
            x=None if x is None else inputs.values(x, "--x"),
            data=None if data is None else inputs.model_batches(data),
            engines=None if engines is None else [name.strip() for name in engines.split(",")],
            epsilon=eps,
            **asked,
        )
    show(found, form, as_json, wide)
    return CLEAN if found.agrees else FINDINGS
