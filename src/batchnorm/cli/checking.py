"""What is wrong: check and rule."""

from __future__ import annotations

from typing import Any

import click

from .options import MODEL_HELP, busy, opened, output_options, say, show, stdout_kept
from .program import CLEAN, FINDINGS, program
from .settings import project_settings

LEVELS = click.Choice(["error", "warning", "note"])


@program.command("check", epilog=MODEL_HELP)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--data",
    metavar="FILE",
    help="The input of the MODEL, run batch by batch: .npy, .npz, or package.module:name, an iterable of batches "
    "(arrays, tuples (x, labels), dicts of inputs). Named inputs mask (1 where there is data) or lengths tell of "
    "padded sequences (batchnorm rule BN406).",
)
@click.option("--labels", metavar="FILE", help="The right answers, .npy: accuracy in both modes.")
@click.option("--batch-size", type=int, metavar="N", help="That of the training, for arrays (BN405).")
@click.option("--skip-nonfinite", is_flag=True, help="Leave out samples with a NaN or an infinity in them.")
@click.option("--select", metavar="CODES", help="Only these rules: BN107,BN2 (a beginning selects all it begins).")
@click.option("--ignore", metavar="CODES", help="Not these rules.")
@click.option("--fail-on", type=LEVELS, help="From which level on the exit status is 1 (warning).")
@click.option("--eps", type=float, metavar="E", help="The epsilon, where a file holds none.")
@click.option("--trust", is_flag=True, help="Read TorchScript, whose loader runs code of the file.")
@click.option("--weights", metavar="FILE", help="A state dict, loaded into package.module:name first.")
@click.option("--wide", is_flag=True, help="Every layer, and more columns than a terminal of 80 holds.")
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "markdown", "sarif", "github"]),
    default="text",
    help="How to print: sarif for code scanning, github for annotations in a workflow.",
)
def check_command(
    models: tuple[str, ...],
    data: str | None,
    labels: str | None,
    batch_size: int | None,
    skip_nonfinite: bool,
    select: str | None,
    ignore: str | None,
    fail_on: str | None,
    eps: float | None,
    trust: bool,
    weights: str | None,
    form: str,
    as_json: bool,
    wide: bool,
) -> int:
    """What is wrong with MODEL, the numbers that show it, and the way out.

    Without --data it reads the file and runs nothing. Several MODELs are also held against each other. [tool.batchnorm]
    in pyproject.toml can hold select, ignore and fail-on. Exit status 1 from --fail-on on.
    """
    from batchnorm.api import inputs
    from batchnorm.api.checking import check

    own = project_settings()
    with stdout_kept(), busy("Running the model", data is not None):
        given = [opened(model, eps, trust, weights) for model in models]
        found = check(
            given[0],
            None if data is None else inputs.model_batches(data),
            labels=None if labels is None else inputs.array_file(labels, "--labels"),
            batch_size=batch_size,
            skip_nonfinite=skip_nonfinite,
            others=given[1:],
            select=select if select is not None else own.get("select"),
            ignore=ignore if ignore is not None else own.get("ignore"),
            fail_on=fail_on or own.get("fail-on", "warning"),
            epsilon=eps,
        )
    _print(found, form, as_json, wide)
    return FINDINGS if found.failed else CLEAN


def _print(found: Any, form: str, as_json: bool, wide: bool) -> None:
    if form not in ("sarif", "github") or as_json:
        show(found, form, as_json, wide)
        return
    from batchnorm.api.rulebook import rules
    from batchnorm.render import annotations

    if form == "sarif":
        say(annotations.sarif(found.to_document(), rules().to_document()["rules"]))
    elif found.findings:
        say(annotations.github(found.to_document()))


@program.command("rule")
@click.argument("code", required=False)
@output_options
def rule_command(code: str | None, form: str, as_json: bool, wide: bool) -> int:
    """Explain rule CODE of check, or list them all."""
    from batchnorm.api.rulebook import rules

    show(rules(code), form, as_json, wide)
    return CLEAN
