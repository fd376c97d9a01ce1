"""Recall and false alarms of check over the corpus: ``python tests/corpus/report.py [--json] [corpus] [holdout]``.

Prints, for each part, a table of rules by framework and format (found of planted), the recall, every false alarm, and,
with ``--others``, what else was said of planted models.
"""

import json
import os
import sys
import tempfile
import warnings
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from tests.corpus.holdout.samples import known as held_out_samples
from tests.corpus.manifest import PARTS, entries, unpack

SAMPLES = 400
LEVELS = ("note", "warning", "error")


def digits(files):
    """The data of each kind of network of the first part, by the name that the manifest gives it."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = (images[:SAMPLES].reshape(-1, 8, 8) / 16).astype("float32"), labels[:SAMPLES]
    known = {
        "digits": images[..., None],
        "conv1d": images,
        "mlp": images.reshape(-1, 64),
        "torch": images[:, None],
        "torch_conv1d": images,
        "torch_mlp": images.reshape(-1, 64),
        "padded": np.load(files / "padded.npy").astype("float32"),
        "rgb": np.load(files / "rgb.npy").astype("float32") / 255,
    }
    return known, labels


def standardised(x):
    """As for networks that were trained on ImageNet."""
    return (x - np.array([0.485, 0.456, 0.406], "float32")) / np.array([0.229, 0.224, 0.225], "float32")


CHANGES = {
    "times255": lambda x: x * 255,
    "times127": lambda x: x * 127.5,
    "reversed": lambda x: np.ascontiguousarray(x[:, ::-1]),
    "last_reversed": lambda x: np.ascontiguousarray(x[..., ::-1]),
    "standardised": standardised,
    "none": lambda x: x,
}


def model_of(entry, files):
    """The file, or a live network that is filled from one."""
    if entry.form != "live":
        return files / entry.file
    from tests.corpus.live import build

    return build(*entry.run["live"], files / entry.run["weights"])


def findings(entry, files, known, labels):
    """What check finds: rule, level and layers of each."""
    import batchnorm as bn

    run = entry.run
    how = {"others": [files / name for name in run.get("others", ())], "ignore": run.get("ignore")}
    if "data" in run:
        how["data"] = CHANGES[run.get("change", "none")](known[run["data"]])
        how["batch_size"] = run.get("batch")
        if run.get("labels"):
            how["labels"] = labels
        if isinstance(how["data"], dict):
            how["data"] = [how["data"]]
            how.pop("batch_size")
    found = bn.check(model_of(entry, files), **how).findings
    return [(one.rule.code, one.level, [one.hit.layer, *one.hit.layers]) for one in found]


def shown(entry, found):
    """Whether the planted fault is among the findings, at its layer and level."""
    return any(
        rule in (entry.rule, *entry.also)
        and entry.level in (None, level)
        and LEVELS.index(level) >= LEVELS.index(entry.least)
        and (entry.layer is None or entry.layer in layers)
        for rule, level, layers in found
    )


def alarms(found):
    return [(rule, level, layers) for rule, level, layers in found if level != "note"]


def results(part="corpus"):
    """Each entry with what was found."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        unpack(files, part)
        known, labels = digits(files) if part == "corpus" else (held_out_samples(), None)
        return [(entry, findings(entry, files, known, labels)) for entry in entries(part)]


def planted(looked):
    return [(entry, found) for entry, found in looked if entry.rule and not entry.beyond]


def table(looked):
    """Found of planted, by rule, framework and format; the last line counts false alarms on sound models."""
    columns = sorted({(entry.framework, entry.form) for entry, _ in looked})
    cells = defaultdict(list)
    for entry, found in planted(looked):
        cells[entry.rule, (entry.framework, entry.form)].append(shown(entry, found))
    sound = defaultdict(list)
    for entry, found in looked:
        if entry.rule is None:
            sound[entry.framework, entry.form].append(bool(alarms(found)))
    yield ["", *(" ".join(column) for column in columns)]
    for rule in sorted({rule for rule, _ in cells}):
        hits = [cells.get((rule, column), []) for column in columns]
        yield [rule, *(f"{sum(hit)}/{len(hit)}" if hit else "" for hit in hits)]
    alarmed = [sound.get(column, []) for column in columns]
    yield ["false alarms", *(f"{sum(one)}/{len(one)}" if one else "" for one in alarmed)]


def summary(looked):
    """Recall, what was missed, and the false alarms."""
    missed = [entry for entry, found in planted(looked) if not shown(entry, found)]
    lines = [f"missed {one.rule} in {one.file} at {one.layer}: {one.what}" for one in missed]
    sound = [(entry, alarms(found)) for entry, found in looked if entry.rule is None]
    false = [f"false alarm on {entry.file} ({entry.what}): {found}" for entry, found in sound if found]
    total = len(planted(looked))
    lines.append(
        f"recall {total - len(missed)} of {total} planted faults; {len(false)} false alarms on {len(sound)} sound "
        f"models; {sum(entry.beyond is not None for entry, _ in looked)} faults that the files cannot show"
    )
    return lines + false


def collateral(looked):
    """Warnings and errors on planted models beside the planted rule: each must be true of it, too."""
    for entry, found in looked:
        others = [one for one in alarms(found) if one[0] not in (entry.rule, *entry.also)]
        if entry.rule and others:
            yield f"{entry.file} ({entry.what}): {others}"


def markdown(rows):
    head, *rest = rows
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest)]


if __name__ == "__main__":
    options = [word for word in sys.argv[1:] if word.startswith("-")]
    parts = [word for word in sys.argv[1:] if word not in options] or list(PARTS)
    looked = {part: results(part) for part in parts}
    if "--json" in options:
        print(json.dumps({part: [[asdict(entry), found] for entry, found in each] for part, each in looked.items()}))
    else:
        for part, each in looked.items():
            print(f"\n{part}\n", *markdown(table(each)), "", *summary(each), sep="\n")
            if "--others" in options:
                print("", *collateral(each), sep="\n")
