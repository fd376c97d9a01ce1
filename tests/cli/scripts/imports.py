"""What importing the package, list, explain and every -h bring along; run in a process of its own."""

import sys

HEAVY = ("keras", "tensorflow", "torch", "jax", "jaxlib", "flax", "h5py", "onnx", "numba", "scipy", "pandas")


class Blocked:
    """Importing any of these is an error, as in a light install."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def third_party():
    roots = {name.partition(".")[0] for name, module in list(sys.modules.items()) if getattr(module, "__file__", None)}
    return {root for root in roots if "site-packages" in (getattr(sys.modules.get(root), "__file__", None) or "")}


before = third_party()
import batchnorm  # noqa: E402

brought = third_party() - before - {"batchnorm"}
assert brought <= {"numpy"}, f"import batchnorm imports {brought}"

sys.meta_path.insert(0, Blocked())
from batchnorm import cli  # noqa: E402

for command in ([], ["list"], ["explain"], ["demo"], ["doctor"]):
    assert cli.run([*command, "-h"]) == 0
    assert cli.run([*command, "--help"]) == 0
helped = third_party() - before - {"batchnorm"}
assert helped <= {"numpy", "click"}, f"-h imports {helped}"

for name in batchnorm.__all__:
    assert getattr(batchnorm, name) is not None, name
    assert name in dir(batchnorm)

model = sys.argv[1]
assert cli.run(["list", model]) == 0
assert cli.run(["explain", model]) == 0
assert cli.run(["explain", model, "--layer", "stem_bn", "--channel", "0", "--json"]) == 0
found = {name.partition(".")[0] for name in sys.modules} & set(HEAVY)
assert not found, f"list and explain import {found}"
assert cli.run(["explain", model, "--data", sys.argv[2]]) == 2, "what needs Keras says so"
