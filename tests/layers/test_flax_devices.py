"""Many devices: in a process of its own, because XLA reads its flags once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flax")

SCRIPT = Path(__file__).parent / "scripts" / "flax_on_devices.py"


@pytest.mark.slow
def test_eight_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", str(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
