"""Keras takes its backend once per process, so the cases run in a process of their own for each backend."""

import os

collect_ignore = [] if os.environ.get("BATCHNORM_KERAS_CASES") else ["cases"]
