"""The command: parse, call, render, exit status."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Mapping
from typing import Any

import click

from batchnorm import __version__
from batchnorm.errors import BatchnormError

__all__ = ["main", "run"]

MOST_MESSAGE = 1000
CLEAN, FINDINGS, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 80}
MODEL_HELP = """
MODEL is a .keras, .weights.h5, .h5, .hdf5 or .safetensors file, an unzipped
.keras folder, or package.module:name, a live object or a factory without
arguments. Reading a file executes nothing of it; --data runs its graph in Keras with safe_mode on,
and package.module:name runs your own code."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command and leave with its exit status: 0 clean, 1 findings, 2 unusable, 130 interrupted."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """The same, with the status returned."""
    try:
        return int(program.main(arguments, prog_name="batchnorm", standalone_mode=False) or CLEAN)
    except click.exceptions.NoArgsIsHelpError as shown:
        click.echo(shown.format_message())
        return UNUSABLE
    except click.ClickException as error:
        return _complain(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BatchnormError as error:
        return _complain(str(error))


def _complain(message: str) -> int:
    from batchnorm.render.text import printable

    line = printable(message)
    if len(line) > MOST_MESSAGE:  # names from a file can have any length
        line = f"{line[: MOST_MESSAGE // 2]} ... {line[-MOST_MESSAGE // 2 :]}"
    click.echo(f"batchnorm: {line}", err=True)
    return UNUSABLE


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="batchnorm", message="%(prog)s %(version)s")
def program() -> None:
    """Batch normalization you can understand, trust and repair.

    Start with: batchnorm demo, or batchnorm explain MODEL.
    """


def _output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--wide", is_flag=True, help="More columns than a terminal of 80 holds."),
        click.option("--json", "as_json", is_flag=True, help="Short for --format json."),
        click.option(
            "--format", "form", type=click.Choice(["text", "json", "markdown"]), default="text", help="How to print."
        ),
    ):
        command = option(command)
    return command


def _model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--eps", type=float, metavar="E", help="The epsilon, where the file holds none."),
        click.option("--trust", is_flag=True, help="Read TorchScript, whose loader runs code of the file."),
        click.option("--weights", metavar="FILE", help="A state dict, loaded into package.module:name first."),
    ):
        command = option(command)
    return click.argument("model")(command)


@program.command("list", epilog=MODEL_HELP)
@_model_options
@click.option("--arrays", is_flag=True, help="With gamma, beta and the moving statistics (JSON).")
@_output_options
def list_command(
    model: str, eps: float | None, trust: bool, weights: str | None, arrays: bool, form: str, as_json: bool, wide: bool
) -> int:
    """Every batch normalization of MODEL in a row, with its worst sign."""
    from batchnorm.api import list_layers

    with _stdout_kept():
        found = list_layers(_opened(model, eps, trust, weights), epsilon=eps, arrays=arrays)
    _print(found, form, as_json, wide)
    return CLEAN


@program.command("explain", epilog=MODEL_HELP)
@_model_options
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
@_output_options
def explain_command(
    model: str,
    eps: float | None,
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
    from batchnorm import inputs
    from batchnorm.api import explain

    with _stdout_kept(), _busy("Running the model", data is not None):
        found = explain(
            _opened(model, eps, trust, weights),
            None if x is None else inputs.values(x, "--x"),
            data=None if data is None else inputs.model_input(data),
            at=None if at is None else inputs.index(at),
            expect=None if expect is None else inputs.values(expect, "--expect"),
            epsilon=eps,
            **asked,
        )
    _print(found, form, as_json, wide)
    return CLEAN


@program.command("diff", epilog=MODEL_HELP)
@click.argument("a")
@click.argument("b")
@click.option("--eps", type=float, metavar="E", help="The epsilon, where a file holds none.")
@click.option("--trust", is_flag=True, help="Read TorchScript, whose loader runs code of the file.")
@_output_options
def diff_command(a: str, b: str, eps: float | None, trust: bool, form: str, as_json: bool, wide: bool) -> int:
    """What differs between models A and B, and how far it moves the output.

    Layers are paired across formats by values, names and order. Exit status 1 if anything differs that changes an
    output. Nothing is run.
    """
    from batchnorm.comparing import diff

    with _stdout_kept():
        found = diff(_opened(a, eps, trust), _opened(b, eps, trust), epsilon=eps)
    _print(found, form, as_json, wide)
    return FINDINGS if found.changes_output else CLEAN


@program.command("verify", epilog=MODEL_HELP)
@_model_options
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
@click.option("--force", is_flag=True, help="Replace an existing file of --save-inputs.")
@_output_options
def verify_command(
    model: str,
    other: str | None,
    eps: float | None,
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
    """
    from batchnorm import inputs
    from batchnorm.verifying import verify

    with _stdout_kept(), _busy("Asking the engines", True):
        found = verify(
            _opened(model, eps, trust, weights),
            None if other is None else _opened(other, eps, trust),
            x=None if x is None else inputs.values(x, "--x"),
            data=None if data is None else inputs.model_batches(data),
            engines=None if engines is None else [name.strip() for name in engines.split(",")],
            epsilon=eps,
            **asked,
        )
    _print(found, form, as_json, wide)
    return CLEAN if found.agrees else FINDINGS


@program.command("demo")
@_output_options
def demo_command(form: str, as_json: bool, wide: bool) -> int:
    """Train the model of the original question, and answer it."""
    from batchnorm.demo import demo

    _print(demo(), form, as_json, wide)
    return CLEAN


@program.command("doctor")
@_output_options
def doctor_command(form: str, as_json: bool, wide: bool) -> int:
    """Versions, engines, processors, and what each missing extra would add."""
    from batchnorm.doctor import doctor

    _print(doctor(), form, as_json, wide)
    return CLEAN


@contextlib.contextmanager
def _busy(what: str, long: bool) -> Generator[None]:
    """Say on stderr what takes so long, on a terminal."""
    if not long or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def _opened(model: str, epsilon: float | None = None, trust: bool = False, weights: str | None = None) -> Any:
    from batchnorm import inputs

    given = inputs.named_object(model) if inputs.names_object(model) else model
    if not trust and weights is None:
        return given
    from batchnorm.api import load

    return load(given, epsilon=epsilon, trust=trust, weights=weights)


@contextlib.contextmanager
def _stdout_kept() -> Generator[None]:
    """What a user's own module or an engine prints goes to stderr: stdout is the answer's alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _print(result: Any, form: str, as_json: bool, wide: bool) -> None:
    try:
        if as_json or form == "json":
            click.echo(result.to_json())
        else:
            _print_text(result.to_document(), form, wide)
    except BrokenPipeError:
        _give_up_stdout()  # the reader of the pipe has seen enough
    except OSError as error:
        _give_up_stdout()
        raise click.ClickException(f"cannot write to standard output ({error.strerror}).") from None


def _print_text(document: Mapping[str, Any], form: str, wide: bool) -> None:
    from batchnorm.render import markdown, text

    if form == "markdown":
        click.echo(markdown.render(document))
    elif sys.stdout is not None and sys.stdout.isatty():  # pyright: ignore[reportUnnecessaryComparison]
        text.draw(document, text.console(wide=wide), wide=wide)
    else:
        click.echo(text.render(document, wide=wide))


def _give_up_stdout() -> None:
    # The interpreter flushes once more at exit, and would fail as the write did.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
