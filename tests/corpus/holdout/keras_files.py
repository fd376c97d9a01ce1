"""How the Keras networks of the second part are saved, and what is noted of them."""

import json
import zipfile

import keras
import numpy as np
import tensorflow as tf

from tests.corpus.manifest import Entry, files

FILES = files("holdout")
ENTRIES = []


def note(file, arch, what, rules, layer, least, run, beyond):
    first, *also = rules or [None]
    ENTRIES.append(
        Entry(file, arch, "keras", what, first, layer, None, run or {}, also, least if first else "note", beyond)
    )


def keep(model, name, what, rules=(), layer=None, least="note", *, ending=".keras", run=None, beyond=None):
    """Save the model by its framework's own way, and note what it is."""
    target = FILES / f"{name}{ending}"
    if ending == ".weights.h5":
        model.save_weights(target)
    elif ending == "":
        model.export(target, verbose=False)
        lean(target)
    elif ending == ".tflite":
        convert = tf.lite.TFLiteConverter.from_keras_model(model)
        target.write_bytes(convert.convert())
    else:
        model.save(target)
    note(target.name, model.name, what, rules, layer, least, run, beyond)


def lean(folder):
    """A SavedModel without its fingerprint, which is not read."""
    for path in (folder / "fingerprint.pb",):
        path.unlink(missing_ok=True)


def edited(source, name, layer, what, rules, least="note", **changes):
    """Copy a .keras file with another line in its config.json, as people edit it."""
    target = FILES / f"{name}.keras"
    with zipfile.ZipFile(FILES / source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.namelist():
            content = old.read(item)
            if item == "config.json":
                config = json.loads(content)
                for one in config["config"]["layers"]:
                    if one["config"].get("name") == layer:
                        one["config"].update(changes)
                content = json.dumps(config).encode()
            new.writestr(item, content)
    arch = next(entry.arch for entry in ENTRIES if entry.file == source)
    note(target.name, arch, what, rules, layer, least, None, None)


def copied(model):
    """A copy with its optimizer."""
    path = FILES / "copy.keras"
    model.save(path)
    other = keras.saving.load_model(path)
    path.unlink()
    return other


def fresh(model):
    """The same weights without an optimizer, as after load_weights into a new model."""
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    return other


def with_arrays(model, layer, **arrays):
    layer = model.get_layer(layer)
    for name, value in arrays.items():
        held = getattr(layer, name)
        held.assign(value(np.array(held)) if callable(value) else np.broadcast_to(value, held.shape))
    return model


def put(where, number):
    def change(old):
        old[where] = number
        return old

    return change
