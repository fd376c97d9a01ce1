"""Damage, done at random but the same each time, and what readers make of it."""

import struct
import time

from batchnorm.errors import ModelFileError
from batchnorm.models import open_model


def mutated(data, rng):
    """The bytes with a few of them changed, moved or cut off."""
    data = bytearray(data)
    if rng.random() < 0.15:
        del data[rng.randrange(len(data)) :]
        return bytes(data) or b"\0"
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data))
        kind = rng.random()
        if kind < 0.4:
            data[at] ^= 1 << rng.randrange(8)
        elif kind < 0.7:
            data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind < 0.9:
            word = rng.choice((0, 1, 2**32 - 1, 2**64 - 1, len(data), rng.randrange(len(data)), 2**40))
            data[at : at + 8] = struct.pack("<Q", word)
        else:
            source = rng.randrange(len(data))
            data[at : at + 16] = data[source : source + 16]
    return bytes(data) or b"\0"


def outcomes(path, files):
    """Reads each of the files: how many opened, how many were refused in one line, and the slowest in seconds."""
    tally = {"opened": 0, "refused": 0, "slowest": 0.0}
    for data in files:
        path.write_bytes(data)
        started = time.process_time()
        message = _refusal(path)
        assert message is None or ("\n" not in message and message.isprintable()), message
        tally["opened" if message is None else "refused"] += 1
        tally["slowest"] = max(tally["slowest"], time.process_time() - started)
    return tally


def _refusal(path):
    try:
        open_model(path)
    except ModelFileError as error:
        return str(error)
    return None
