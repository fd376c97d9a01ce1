"""The bar as a user sees it: at a terminal on stderr, not in a pipe, and stdout is for the result alone."""

import json
import os
import pty
import subprocess
import sys

import numpy as np
import pytest

SLOW = """
import time
import torch


class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, x):
        time.sleep(0.12)
        return self.norm(x)
"""


@pytest.fixture
def command(tmp_path, environment):
    pytest.importorskip("torch")
    (tmp_path / "slow_net.py").write_text(SLOW)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(0, 1, (160, 4)).astype("f"))
    arguments = ["recalibrate", "slow_net:Slow", "--data", "x.npy", "--batch-size", "8", "--json", "-o", "out.pt"]
    env = {**environment, "PYTHONPATH": f"{environment['PYTHONPATH']}{os.pathsep}{tmp_path}"}
    return {"args": [sys.executable, "-m", "batchnorm", *arguments], "env": env, "cwd": tmp_path}


def test_at_a_terminal(command):
    reader, writer = pty.openpty()
    process = subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=writer)
    os.close(writer)
    shown = b""
    while True:
        try:
            part = os.read(reader, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    out = process.communicate(timeout=120)[0]
    os.close(reader)
    assert process.returncode == 0, shown
    assert json.loads(out)["passes"] == 1
    text = shown.decode()
    assert "one-pass: 1 pass over the data" in text
    assert "━" in text
    assert "/160 samples" in text
    assert text.endswith("\r\x1b[K"), "taken away at the end"


def test_in_a_pipe(command):
    done = subprocess.run(**command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passes"] == 1
    assert "one-pass: 1 pass over the data" in done.stderr
    assert "━" not in done.stderr
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
