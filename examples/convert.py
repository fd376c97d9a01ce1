"""Convert digits.keras to ONNX by hand, and lose something: ``KERAS_BACKEND=jax python examples/convert.py``.

It writes digits.onnx as many a converter was first written: weights transposed, names kept, and epsilon left to the
default of ONNX (1e-5), where Keras has 1e-3. ``batchnorm diff examples/digits.keras examples/digits.onnx`` names it.
"""

from pathlib import Path

import keras
import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

HERE = Path(__file__).parent


def main():
    """Read the one, write the other."""
    model = keras.saving.load_model(HERE / "digits.keras")
    constants, nodes = [], []

    def constant(name, values):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        return name

    def add(operator, inputs, output, **attributes):
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def conv_bn(x, conv, norm):
        kernel = constant(
            f"{conv}.kernel", keras.ops.convert_to_numpy(model.get_layer(conv).kernel).transpose(3, 2, 0, 1)
        )
        y = add("Conv", [x, kernel], conv, pads=[1, 1, 1, 1])
        layer = model.get_layer(norm)
        parts = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
        held = [constant(f"{norm}.{n}", keras.ops.convert_to_numpy(part)) for n, part in enumerate(parts)]
        return add("BatchNormalization", [y, *held], norm)  # epsilon=layer.epsilon is missing here

    x = add("Relu", [conv_bn("image", "stem_conv", "stem_bn")], "relu1")
    y = add("Relu", [conv_bn(x, "block_conv1", "block_bn1")], "relu2")
    x = add("Relu", [add("Add", [x, conv_bn(y, "block_conv2", "block_bn2")], "sum")], "relu3")
    x = add("Flatten", [add("GlobalAveragePool", [x], "mean")], "flat")
    dense = model.get_layer("logits")
    kernel, bias = (keras.ops.convert_to_numpy(part) for part in (dense.kernel, dense.bias))
    add("Gemm", [x, constant("logits.kernel", kernel), constant("logits.bias", bias)], "logits")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "digits", [image], [logits], constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), HERE / "digits.onnx")


if __name__ == "__main__":
    main()
