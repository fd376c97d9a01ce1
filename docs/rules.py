"""Write docs/RULES.md, the list of what `batchnorm check` looks for: ``python docs/rules.py``."""

from pathlib import Path

from batchnorm.analysis.rules import RULES

HERE = Path(__file__).parent
PAGES = "../src/batchnorm/analysis/rules/pages"
NEEDS = {"records": "the file", "graph": "the graph", "data": "data", "models": "several models"}


def text() -> str:
    """The whole page."""
    rows = [
        f"| [{rule.code}]({PAGES}/{rule.code}.md) | {rule.name} | {rule.level} | {NEEDS[rule.needs]} | {rule.title} |"
        for rule in RULES
    ]
    return "\n".join([*HEAD, *rows, ""])


HEAD = """# The rules of `batchnorm check`

Each rule has a code for good, a name, the worst level it can give, and a page: the link, or `batchnorm rule CODE`. A
rule fires on what it can prove from the file, and from the data where it says so; where it cannot know it is silent.
Notes that repeat over layers are one finding with a list.

Recall and false alarms are measured on a corpus of small trained networks, sound ones and ones with a planted fault,
in every format: `make corpus-report`. Its second part was written down before the rules were run on it. What they found
then is the measure of faults unseen, what they find now is not, since they were mended on it:

| | planted faults found | alarms on sound models |
|---|---|---|
| networks that the rules were tuned on | 163 of 163 | 0 of 71 |
| others, the first time | 107 of 133 | 6 of 76 |
| others, now | 134 of 134 | 0 of 74 |

[The corpus' own page](../tests/corpus/README.md) says what was missed and why, and where a rule's fault cannot exist.

| code | name | level | looks at | finds |
|---|---|---|---|---|""".splitlines()

if __name__ == "__main__":
    (HERE / "RULES.md").write_text(text(), encoding="utf-8")
