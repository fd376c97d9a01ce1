"""Without a model: demo and doctor."""

from __future__ import annotations

from .options import output_options, show
from .program import CLEAN, program


@program.command("demo")
@output_options
def demo_command(form: str, as_json: bool, wide: bool) -> int:
    """Train the model of the original question, and answer it."""
    from batchnorm.demo import demo

    show(demo(), form, as_json, wide)
    return CLEAN


@program.command("doctor")
@output_options
def doctor_command(form: str, as_json: bool, wide: bool) -> int:
    """Versions, engines, processors, and what each missing extra would add."""
    from batchnorm.doctor import doctor

    show(doctor(), form, as_json, wide)
    return CLEAN
