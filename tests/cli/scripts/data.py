"""explain --data of every layer of a model, as JSON lines; KERAS_BACKEND is set by the caller."""

import contextlib
import io
import json
import sys

from batchnorm import cli

model, data, *layers = sys.argv[1:]
for layer in layers:
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        status = cli.run(["explain", model, "--data", data, "--layer", layer, "--limit", "64", "--json"])
    assert status == 0
    print(json.dumps(json.loads(told.getvalue())))
