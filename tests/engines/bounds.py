"""What a layer should give, and how far an engine in float32 may be off: the bound that verify prints."""

import numpy as np

from batchnorm.core.dtypes import unit_roundoff


def formula(record, x, dtype="float32"):
    """The inference equation in float64 on an input whose channels lie on the record's axis, and the bound."""
    x = np.asarray(x, np.float64)
    shape = [1] * x.ndim
    shape[record.axis] = record.channels

    def wide(array, default):
        values = np.full(record.channels, default) if array is None else array.astype(np.float64)
        return values.reshape(shape)

    mean, variance = wide(record.moving_mean, 0.0), wide(record.moving_variance, 1.0)
    scale = wide(record.gamma, 1.0) / np.sqrt(variance + record.epsilon)
    beta = wide(record.beta, 0.0)
    y = scale * (x - mean) + beta
    # 4u(|gamma*inv_std|(|x| + |mean|) + |beta| + |y|): the tolerance that verify uses and prints.
    return y, 4 * unit_roundoff(dtype) * (np.abs(scale) * (np.abs(x) + np.abs(mean)) + np.abs(beta) + np.abs(y))
