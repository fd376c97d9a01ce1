"""Live networks of the corpus: built by their settings, and filled from a file's arrays."""


def build(kind, settings, weights):
    """A network in inference mode; ``settings`` are Flax' alone."""
    if settings:
        from safetensors.numpy import load_file

        from tests.corpus.holdout import flax_networks

        return flax_networks.live(kind, settings, load_file(weights))
    from safetensors.torch import load_file as load_tensors

    from tests.corpus.torch_wiring import network

    net = network(kind)
    net.load_state_dict(load_tensors(weights), strict=False)
    return net.eval()
