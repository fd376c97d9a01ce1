"""Live networks of the corpus: built by their settings, and filled from a file's arrays."""

from safetensors.numpy import load_file


def build(arch, settings, weights):
    """A network in inference mode."""
    from tests.corpus.holdout import flax_networks

    return flax_networks.live(arch, settings, load_file(weights))
