"""Verify one model in all its formats: each file on every engine, and every other file beside the first.

    python verify_all.py FOLDER SUFFIX... --faults FILE...

FOLDER/model<SUFFIX> are the files, the first of them the base; each FILE in it is a copy with a fault.

Writes verified.json: ``alone`` and ``pairs`` by suffix, ``faults`` by file, documents of `batchnorm.verify`.
"""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np

import batchnorm as bn
from batchnorm.api import verifying
from batchnorm.engines.workers import Workers

OPTIONS = {".pt": 1e-5, ".safetensors": 1e-5}
"""The epsilon of a state dict is for the user to say."""


def load(folder, stem, suffix):
    return bn.load(folder / f"{stem}{suffix}", trust=True)


def document(result):
    return json.loads(result.to_json())


def main(folder, suffixes, faults):
    x = np.load(folder / "x.npy")
    found = {"alone": {}, "pairs": {}, "faults": {}}
    base = load(folder, "model", suffixes[0])
    with Workers() as workers:
        # Each framework is started once, whatever the number of verifications.
        verifying.Workers = lambda timeout: contextlib.nullcontext(workers)
        for suffix in suffixes:
            model = folder / f"model{suffix}"
            data = {"data": x} if suffix == suffixes[0] else {}
            with bn.testing.assert_unchanged(model):
                epsilon = OPTIONS.get(suffix)
                loaded = bn.load(model, trust=True, epsilon=epsilon)
                found["alone"][suffix] = document(bn.verify(loaded, epsilon=epsilon, **data))
                for direction, pair in (("to", (base, load(folder, "model", suffix))),
                                        ("from", (load(folder, "model", suffix), base))):  # fmt: skip
                    one = bn.verify(*pair, data=x)
                    found["pairs"][f"{direction} {suffix}"] = document(one)
        for fault in faults:  # names of files
            one = bn.verify(base, load(folder, fault, ""), data=x)
            found["faults"][fault] = document(one)
    (folder / "verified.json").write_text(json.dumps(found))


if __name__ == "__main__":
    names = sys.argv[2:]
    at = names.index("--faults") if "--faults" in names else len(names)
    main(Path(sys.argv[1]), names[:at], names[at + 1 :])
