"""What the graph says of single operations: transpositions, dropout that drops nothing, nodes of one layer."""

import pytest

from batchnorm.models import open_model
from batchnorm.models.keras_graph import graph_of
from batchnorm.models.torch_live import from_live

torch = pytest.importorskip("torch", reason="the graphs are PyTorch's own")
nn = torch.nn


class Moved(nn.Module):
    """A normalization between two exchanges of axes, called twice, and dropout at rates 0 and .5."""

    def __init__(self, exchange):
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm1d(6)
        self.drop_none, self.drop_half = nn.Dropout(0.0), nn.Dropout(0.5)
        self.exchange = exchange

    def forward(self, x):
        x = self.exchange(self.bn(self.exchange(self.conv(x))))
        return self.drop_half(self.drop_none(torch.relu(self.exchange(self.bn(self.exchange(x))))))


EXCHANGES = {"transpose": lambda x: x.transpose(1, 2), "permute": lambda x: x.permute(0, 2, 1)}


@pytest.fixture(scope="module", params=EXCHANGES)
def network(request):
    net = Moved(EXCHANGES[request.param]).eval()
    net.bn.running_mean += 1
    return net


def moves(graph):
    return [each.settings["permutation"] for each in graph.operations if "permutation" in each.settings]


def kinds(graph):
    return [each.kind for each in graph.operations]


def program(net, path):
    example = (torch.zeros(2, 3, 6),)
    torch.export.save(torch.export.export(net, example), path)


def exported(net, path):
    torch.onnx.export(net, (torch.zeros(2, 3, 6),), path, input_names=["x"], dynamo=False, do_constant_folding=False)


def test_transpositions_and_dropout_of_a_live_module(network):
    graph = from_live(network).graph
    assert moves(graph) == [(0, 2, 1)] * 4
    assert kinds(graph).count("dropout") == 1


def test_transpositions_and_dropout_of_an_exported_program(network, tmp_path):
    program(network, tmp_path / "net.pt2")
    graph = open_model(tmp_path / "net.pt2").graph
    assert moves(graph) == [(0, 2, 1)] * 4
    assert kinds(graph).count("dropout") == 1


@pytest.mark.filterwarnings("ignore")
def test_transpositions_and_statistics_of_an_onnx_graph(network, tmp_path):
    exported(network, tmp_path / "net.onnx")
    graph = open_model(tmp_path / "net.onnx").graph
    assert moves(graph) == [(0, 2, 1)] * 2  # the exporter joins the two in the middle
    first, second = (each for each in graph.operations if each.kind == "batch_norm")
    assert first.name != second.name
    assert first.settings["statistics"] == second.settings["statistics"]


@pytest.mark.parametrize("version", [11, 12])
@pytest.mark.parametrize(("rate", "kind"), [(0.0, "identity"), (0.3, "dropout")])
def test_dropout_of_an_onnx_graph_at_its_rate(tmp_path, version, rate, kind):
    onnx = pytest.importorskip("onnx", reason="the graph is made by the real onnx")
    helper = onnx.helper
    old = version < 12
    held = [] if old else [helper.make_tensor("rate", onnx.TensorProto.FLOAT, [], [rate])]
    node = helper.make_node("Dropout", ["x"] if old else ["x", "rate"], ["y"], **({"ratio": rate} if old else {}))
    x, z = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3]) for name in "xz")
    bn = helper.make_node("BatchNormalization", ["y", "g", "b", "m", "v"], ["z"], name="bn")
    held += [helper.make_tensor(name, onnx.TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]) for name in "gbmv"]
    model = helper.make_model(
        helper.make_graph([node, bn], "g", [x], [z], held), opset_imports=[helper.make_opsetid("", version)]
    )
    target = tmp_path / "net.onnx"
    target.write_bytes(model.SerializeToString())
    assert kinds(open_model(target).graph) == [kind, "batch_norm"]


def test_layers_of_keras_that_move_axes_or_drop_nothing():
    def layer(kind, **config):
        return {"class_name": kind, "config": {"name": kind.lower(), **config}, "module": "keras.layers"}

    config = {
        "class_name": "Sequential",
        "config": {"layers": [layer("Permute", dims=[2, 1]), layer("Dropout", rate=0), layer("Dropout", rate=0.1)]},
    }
    graph = graph_of(config)
    assert moves(graph) == [(0, 2, 1)]
    assert kinds(graph) == ["reshape", "identity", "dropout"]
