"""The program: its exit status, and what it says of an error."""

from __future__ import annotations

import sys

import click

from batchnorm import __version__
from batchnorm.errors import BatchnormError

__all__ = ["CLEAN", "FINDINGS", "main", "program", "run"]

MOST_MESSAGE = 1000
CLEAN, FINDINGS, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 80}


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
