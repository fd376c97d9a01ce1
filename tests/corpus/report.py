"""Recall and false alarms of check over the corpus: ``KERAS_BACKEND=jax python tests/corpus/report.py [--json]``."""

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

from tests.corpus.manifest import entries, unpack

SAMPLES = 400


def digits(files):
    """The data of each kind of network, by the name that the manifest gives it."""
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


CHANGES = {
    "times255": lambda x: x * 255,
    "times127": lambda x: x * 127.5,
    "reversed": lambda x: np.ascontiguousarray(x[:, ::-1]),
    "none": lambda x: x,
}


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
    found = bn.check(files / entry.file, **how).findings
    return [(one.rule.code, one.level, [one.hit.layer, *one.hit.layers]) for one in found]


def shown(entry, found):
    """Whether the planted fault is among the findings, at its layer and level."""
    return any(
        rule == entry.rule and entry.level in (None, level) and (entry.layer is None or entry.layer in layers)
        for rule, level, layers in found
    )


def alarms(found):
    return [(rule, level, layers) for rule, level, layers in found if level != "note"]


def results(part=lambda entry: True):
    """Each entry with what was found."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        unpack(files)
        known, labels = digits(files)
        return [(entry, findings(entry, files, known, labels)) for entry in entries() if part(entry)]


def summary(looked):
    """Recall by rule, and the false alarms."""
    rules = defaultdict(list)
    for entry, found in looked:
        if entry.rule:
            rules[entry.rule].append((entry, found))
    lines = []
    for rule, planted in sorted(rules.items()):
        missed = [entry.file for entry, found in planted if not shown(entry, found)]
        lines.append(
            f"{rule}  {len(planted) - len(missed)} of {len(planted)} found" + (f"; missed {missed}" if missed else "")
        )
    sound = [(entry, alarms(found)) for entry, found in looked if entry.rule is None]
    false = [f"{entry.file}: {found}" for entry, found in sound if found]
    total = sum(map(len, rules.values()))
    hits = sum(shown(entry, found) for planted in rules.values() for entry, found in planted)
    lines.append(f"recall {hits} of {total} planted faults; {len(false)} false alarms on {len(sound)} sound models")
    return lines + false


def collateral(looked):
    """Warnings and errors on planted models beside the planted rule: each must be true of it, too."""
    for entry, found in looked:
        others = [(rule, level, layers) for rule, level, layers in alarms(found) if rule != entry.rule]
        if entry.rule and others:
            yield f"{entry.file} ({entry.what}): {others}"


if __name__ == "__main__":
    all_of_them = results()
    if "--json" in sys.argv:
        print(json.dumps([[asdict(entry), found] for entry, found in all_of_them]))
    else:
        print("\n".join(summary(all_of_them)))
        if "--others" in sys.argv:
            print("\n".join(collateral(all_of_them)))
