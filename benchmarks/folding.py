"""What folding costs in rounding, by depth, beside the bound that `batchnorm fold` prints; and what peers get wrong.

    python benchmarks/folding.py [--depths 1,2,5,10,20,50] [--seeds 3]

Networks of convolution, batch normalization and ReLU on PyTorch, with random weights and statistics, folded and run on
random inputs: the largest difference as a share of the largest output. The exit status is 1 if one exceeds its bound or
1e-5. Then the trained models that are at hand, and torch's own fusion on the cases in which it is wrong.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

import batchnorm as bn

ROOT = Path(__file__).parents[1]
CHANNELS = (16, 64)
PACKAGES = (("rapidocr_onnxruntime", "models/*.onnx"), ("fer", "data/*.hdf5"))
STATED = 1e-5


class Shared(nn.Module):
    """One convolution, two batch normalizations."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.a, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both normalise what the one convolution gives."""
        return self.a(self.c(x)) + self.b(self.c(x + 1))


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with statistics and parameters as training leaves them."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    return model.eval()


def stack(depth: int, channels: int) -> nn.Module:
    """``depth`` times convolution, batch normalization, ReLU."""
    layers: list[nn.Module] = []
    for at in range(depth):
        layers += [nn.Conv2d(channels if at else 3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
        layers += [nn.ReLU()] if at < depth - 1 else []
    return nn.Sequential(*layers)


def by_depth(depths: list[int], seeds: int) -> bool:
    """The table; whether everything is within its bound and 1e-5."""
    print("depth " + "".join(f"   {channels:3} channels: max rel     bound" for channels in CHANNELS))
    fine = True
    for depth in depths:
        cells = []
        for channels in CHANNELS:
            given = torch.randn(4, 3, 8, 8).numpy()
            proofs = [bn.fold(trained(stack(depth, channels), n), data=given, seed=n).proof for n in range(seeds)]
            worst = max(proof.max_rel for proof in proofs)
            fine &= worst <= min(STATED, proofs[0].bound)
            cells.append(f"{worst:23.2e} {proofs[0].bound:9.2e}")
        print(f"{depth:5} {'   '.join(cells)}")
    return fine


def models() -> None:
    """Trained models: ours, and those of packages that are installed."""
    places = [ROOT / "examples" / "digits.onnx"]
    for package, pattern in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            places += sorted(Path(spec.origin).parent.glob(pattern))
    print("\nmodel                                folded  refused   max rel     bound  written")
    for place in places:
        with tempfile.TemporaryDirectory() as folder:
            found = bn.fold(place, Path(folder) / f"out{place.suffix}")
        proof = found.proof
        numbers = f"{proof.max_rel:9.2e} {proof.bound:9.2e}" if proof else ""
        written = "yes" if found.output else "no: " + found.notes[-1][:40]
        print(f"{place.stem:35} {len(found.folded):7} {len(found.refused):8} {numbers}  {written}")


def peers() -> None:
    """Torch's own fusion beside ours, on the same models."""
    from torch.fx.experimental.optimization import fuse
    from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

    up = trained(nn.Sequential(nn.ConvTranspose2d(3, 3, 3), nn.BatchNorm2d(3)))
    sequence = trained(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)))
    shared = trained(Shared())
    x, s, image = torch.randn(8, 3, 6, 6), torch.randn(8, 5, 5), torch.randn(4, 3, 5, 5)
    rows = (
        ("transposed convolution, equal channels", up, x, fuse_conv_bn_eval(up[0], up[1])(x)),
        ("Linear on (N, L, C)", sequence, s, fuse_linear_bn_eval(sequence[0], sequence[1])(s)),
        ("one convolution, two batch norms", shared, image, fuse(shared)(image)),
    )
    print("\ncase                                      torch's difference  ours")
    for name, model, given, theirs in rows:
        wanted = model(given)
        found = bn.fold(model, data=given.numpy())
        ours = f"{found.proof.max_abs:.1e}" if found.holds else f"refused: {found.refused[0].why[:40]}"
        print(f"{name:41} {(theirs - wanted).abs().max().item():18.2f}  {ours}")


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", default="1,2,5,10,20,50")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    with torch.no_grad():
        fine = by_depth([int(depth) for depth in asked.depths.split(",")], asked.seeds)
        models()
        peers()
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
