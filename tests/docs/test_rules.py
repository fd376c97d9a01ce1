"""docs/RULES.md lists the rules as they are."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_list_is_current():
    written = runpy.run_path(str(DOCS / "rules.py"))["text"]()
    assert DOCS.joinpath("RULES.md").read_text("utf-8") == written, "python docs/rules.py"
    for line in written.splitlines():
        if line.startswith("| ["):
            assert (DOCS / line.partition("](")[2].partition(")")[0]).is_file()
