"""What the commands share: options, and how a result is printed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Mapping
from typing import Any

import click

__all__ = ["EPSILON", "MODEL_HELP", "busy", "model_options", "opened", "output_options", "say", "show", "stdout_kept"]

MODEL_HELP = """
MODEL is a file of Keras (.keras or its unzipped folder, .weights.h5, .h5,
.hdf5), ONNX (.onnx), PyTorch (.pt2, .pt, .pth, .ckpt, .bin, TorchScript) or
LiteRT (.tflite), a .safetensors file, a SavedModel folder, or
package.module:name, a live object or a factory without arguments.

What runs code: reading a file executes nothing of it, except TorchScript, which
PyTorch's loader runs and --trust allows. --data runs the model's graph in its
own engine (Keras with safe_mode on, TensorFlow, PyTorch, ONNX Runtime or
LiteRT). package.module:name runs your own code. A .pt file is read by PyTorch
itself, with weights_only."""


class EpsilonType(click.ParamType):  # pyright: ignore[reportMissingTypeArgument] - generic in newer clicks only
    """A number; or a word or path, from which it is taken later."""

    name = "epsilon"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """What was typed, as a number where it is one."""
        try:
            return float(value)
        except ValueError:
            if value == "hint" or os.path.exists(value):
                return str(value)
        self.fail(f"{value!r} is no number, not 'hint', and no file.", param, ctx)


EPSILON = EpsilonType()


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a command prints."""
    for option in (
        click.option("--wide", is_flag=True, help="More columns than a terminal of 80 holds."),
        click.option("--json", "as_json", is_flag=True, help="Short for --format json."),
        click.option(
            "--format", "form", type=click.Choice(["text", "json", "markdown"]), default="text", help="How to print."
        ),
    ):
        command = option(command)
    return command


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """MODEL, and how it is read."""
    for option in (
        click.option(
            "--eps",
            type=EPSILON,
            metavar="E|hint|FILE",
            help="The epsilon, where the file holds none: a number, what the names suggest, or that of a sibling file.",
        ),
        click.option("--trust", is_flag=True, help="Read TorchScript, whose loader runs code of the file."),
        click.option("--weights", metavar="FILE", help="A state dict, loaded into package.module:name first."),
    ):
        command = option(command)
    return click.argument("model")(command)


@contextlib.contextmanager
def busy(what: str, long: bool) -> Generator[None]:
    """Say on stderr what takes so long, on a terminal."""
    if not long or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def opened(model: str, epsilon: float | str | None = None, trust: bool = False, weights: str | None = None) -> Any:
    """MODEL as it was typed: a path, or the object that package.module:name stands for."""
    from batchnorm.api import inputs

    given = inputs.named_object(model) if inputs.names_object(model) else model
    if not trust and weights is None:
        return given
    from batchnorm.api.loading import load

    return load(given, epsilon=epsilon, trust=trust, weights=weights)


def not_over(out: str, *inputs: str | None) -> None:
    """Refuse to write over the data that are read."""
    from batchnorm.core import output

    output.check_is_no_input(out, [each for each in inputs if each is not None])


@contextlib.contextmanager
def stdout_kept() -> Generator[None]:
    """What a user's own module or an engine prints goes to stderr: stdout is the answer's alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def show(result: Any, form: str, as_json: bool, wide: bool) -> None:
    """Print a result; a reader of the pipe that has gone is no error."""
    with _writing():
        if as_json or form == "json":
            click.echo(result.to_json())
        else:
            _print_text(result.to_document(), form, wide)


def say(text: str) -> None:
    """Print a text, as `show` does a result."""
    with _writing():
        click.echo(text)


@contextlib.contextmanager
def _writing() -> Generator[None]:
    try:
        yield
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
