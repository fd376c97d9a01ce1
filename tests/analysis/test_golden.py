"""What explain says, word for word. ``python tests/analysis/test_golden.py`` writes the texts anew; then read them."""

from pathlib import Path

import pytest

if __name__ == "__main__":
    import cases
else:
    from . import cases

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.__name__)
def test_text(case, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = str(case())
    assert text == (GOLDEN / f"{case.__name__}.txt").read_text(encoding="utf-8").rstrip("\n")
    assert max(map(len, text.splitlines())) <= 80, "fits a terminal of 80 columns"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for one in cases.CASES:
        (GOLDEN / f"{one.__name__}.txt").write_text(f"{one()}\n", encoding="utf-8")
