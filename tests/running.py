"""Scripts in processes of their own, where frameworks do not meet, and what they tell of errors."""

import os
import subprocess
import sys

from batchnorm.errors import BatchnormError


def script(path, *arguments, **environment):
    """Run a script with the paths of this process; an assertion with its errors where it fails."""
    own = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(path), *map(str, arguments)], env=os.environ | own | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def tried(call):
    """The error of a call as text."""
    try:
        call()
    except BatchnormError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
