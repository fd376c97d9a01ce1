"""The bar of a long run: on stderr, after a second, and never in a pipe."""

import io

import pytest

from batchnorm.api import progress
from batchnorm.api.progress import Terminal


class Stream(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def run(stream, clock, steps, total=1000):
    bar = Terminal(stream)
    bar.begin("one-pass: 1 pass over the data, 1 forwards' worth.", total)
    for seconds in steps:
        clock[0] += seconds
        bar.step(100)
    bar.end()
    return stream.getvalue().partition("\n")[2]


def test_what_takes_over_a_second_has_a_bar_that_is_taken_away_again(clock):
    shown = run(Stream(True), clock, [0.5] * 10)
    drawn = shown.split("\r")
    first = next(line for line in drawn if "samples" in line)
    assert first.removesuffix("\x1b[K").endswith("200/1,000 samples, 4 s left")
    assert drawn[-1] == "\x1b[K", "the line is empty at the end"
    assert "100%" in shown


def test_what_takes_less_has_none(clock):
    assert run(Stream(True), clock, [0.09] * 10) == ""


def test_a_pipe_gets_the_first_line_and_no_bar(clock):
    assert run(Stream(False), clock, [1.0] * 10) == ""


def test_it_is_drawn_five_times_a_second_at_most(clock):
    assert run(Stream(True), clock, [0.01] * 1000, total=None).count("samples") <= 1 + (10 - 1) / 0.2


def test_without_a_length_it_counts(clock):
    assert "500 samples, 5 s" in run(Stream(True), clock, [1.0] * 5, total=None)
