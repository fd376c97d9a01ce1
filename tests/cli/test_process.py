"""The command as a process: what it imports, pipes, signals, terminals, and a model that is really run."""

import contextlib
import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).with_name("scripts")
COMMAND = [sys.executable, "-m", "batchnorm"]
U = 2.0**-24
"""Unit roundoff of float32, the type the example models compute in."""


def test_light_imports_and_help_in_a_bare_environment(digits, tmp_path, environment):
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8, 1), "f4"))
    done = subprocess.run(
        [sys.executable, SCRIPTS / "imports.py", digits, tmp_path / "x.npy"],
        env={"PYTHONPATH": environment["PYTHONPATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "pip install 'batchnorm[keras]'" in done.stderr


def test_python_m_is_the_command(environment):
    done = subprocess.run([*COMMAND, "--version"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    import batchnorm

    assert done.stdout == f"batchnorm {batchnorm.__version__}\n"


@pytest.mark.parametrize("options", [["--json"], []])
def test_closed_pipe(question, environment, options):
    """``| head -1``: the reader has seen enough; no traceback, status 0."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        done = subprocess.run(
            [*COMMAND, "list", question, *options], env=environment, stdout=pipe, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("command", [["list"], ["check", "--format", "sarif"], ["check", "--format", "github"]])
def test_full_disk(question, environment, command):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *command, question], env=environment, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith(b"batchnorm: cannot write to standard output")
    assert done.stderr.count(b"\n") == 1


def test_ctrl_c(tmp_path, environment):
    (tmp_path / "slow.py").write_text(
        "import sys, time\ndef make():\n    print('ready', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [*COMMAND, "explain", "slow:make"],
        cwd=tmp_path,
        env=environment | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["slow.py"]


@pytest.mark.parametrize("no_color", [{}, {"NO_COLOR": "1"}])
def test_terminal(make, environment, no_color):
    """Bold and dim on a terminal, never a colour, and nothing of a hostile name."""
    path = make("\x1b[31mred\x1b]0;title\x07[red]x[/red]")
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "explain", path, "--x", "1,2,3"],
        env=environment | no_color | {"TERM": "xterm-256color", "COLUMNS": "120"},
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while piece := os.read(mine, 4096):
            shown += piece
    os.close(mine)
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == b""
    process.stderr.close()
    text = shown.decode()
    styles = set(re.findall(r"\x1b\[([0-9;]*)m", text))
    assert styles <= {"0", "1", "2", "3"}
    assert "\x1b[1m" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "\x1b" not in plain
    assert "\x07" not in plain
    assert max(map(len, plain.splitlines())) <= 80


def bound(channel, value):
    """What an engine may differ by: 4u(|gamma*inv_std|(|x| + |mean|) + |beta| + |y|)."""
    size = abs(channel["scale"]) * (abs(value["x"]) + abs(channel["moving_mean"]))
    return 4 * U * (size + abs(channel["beta"] or 0.0) + abs(value["y"]))


def test_data_runs_the_model_up_to_the_layer(digits, tmp_path, environment):
    pytest.importorskip("keras", reason="the model is run by Keras")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.random((8, 8, 8, 1), dtype="f4"))
    before = hashlib.sha256(digits.read_bytes()).hexdigest()
    layers = ("stem_bn", "block_bn1", "block_bn2")
    done = subprocess.run(
        [sys.executable, SCRIPTS / "data.py", digits, tmp_path / "images.npy", *layers],
        env=environment | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(documents) == len(layers)
    for name, document in zip(layers, documents, strict=True):
        (layer,) = document["layers"]
        assert layer["name"] == name
        assert "beginning at stem_bn (the 1st of 3" in layer["because"][0], "first where training and inference part"
        assert len(layer["explained"]) == 16
        for channel in layer["explained"]:
            assert len(channel["values"]) == 64
            for value in channel["values"]:
                assert abs(value["difference"]) <= bound(channel, value)
                assert value["difference"] == value["model_y"] - value["y"]
    assert hashlib.sha256(digits.read_bytes()).hexdigest() == before
    assert [path.name for path in tmp_path.iterdir()] == ["images.npy"]
