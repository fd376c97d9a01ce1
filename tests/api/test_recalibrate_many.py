"""The same statistics however the data are spread: over ranks of a job, by hand, over processes of Ray; and resumed."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import batchnorm as bn
from batchnorm import cli
from batchnorm.api import checkpoints
from batchnorm.api.shards import collect, merge
from tests.api.networks import Branches
from tests.api.test_recalibrate import images

# A sum over threads is another order of float32 additions: 1e-8 of a standard deviation.
pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
SAME = 1e-12  # relative to the statistics, and to a standard deviation


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Branches()


def alone(model, method, size=8, count=48):
    twin = copy.deepcopy(model)
    return {layer.name: layer for layer in bn.recalibrate(twin, images(count), method=method, batch_size=size).layers}


def assert_same(found, wanted):
    for name, (mean, variance, count) in found.items():
        each = wanted[name]
        assert count == each.count
        if count is not None:
            np.testing.assert_allclose(variance, each.after.variance, rtol=SAME)
            assert np.max(np.abs(np.subtract(mean, each.after.mean)) / np.sqrt(each.after.variance)) < SAME


def job(tmp_path, world, method):
    script = ["-m", "tests.api.scripts.recalibrate_job"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, *script, str(rank), str(world), str(tmp_path / "meeting"), method],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    ended = [process.communicate(timeout=240) for process in started]
    assert not any(process.returncode for process in started), [err for _, err in ended]
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in ended]


@pytest.mark.parametrize(("world", "method"), [(2, "one-pass"), (3, "sequential"), (4, "one-pass"), (4, "sequential")])
def test_ranks_with_unequal_and_empty_parts_agree(tmp_path, model, world, method):
    found = job(tmp_path, world, method)
    assert all(each == found[0] for each in found)
    assert_same(found[0]["layers"], alone(model, method))


def test_an_error_of_one_rank_is_an_error_of_all(tmp_path):
    first, second = job(tmp_path, 2, "broken")
    assert "refuses an input" in first
    assert "rank 0 of the job failed" in second


def test_ranks_whose_checkpoints_do_not_go_together(tmp_path, model):
    first, second = job(tmp_path, 2, "checkpoints")
    for each in (first, second):
        assert "each rank of a job needs a file of its own" in each["shared"]
        assert "the ranks' files are not of the same level" in each["of two levels"]
        assert each["first"] == each["second"] == "broken off"
        assert not each["left behind"]
        assert_same(each["resumed"], alone(model, "sequential"))
    assert "rank0.json is no checkpoint of a recalibration" in first["of none"]
    assert "rank 0 of the job failed: --checkpoint" in second["of none"]
    assert not (tmp_path / "one.json").exists()


# -- by hand -----------------------------------------------------------------------------------------------------------


def shards_of(model, tmp_path, cuts, **more):
    tmp_path.mkdir(exist_ok=True)
    paths = []
    for number, (start, end) in enumerate(cuts):
        path = tmp_path / f"shard{number}.json"
        collect(model, images(48)[start:end], path, batch_size=8, force=True, **more)
        paths.append(path)
    return paths


@pytest.mark.parametrize("cuts", [[(0, 48)], [(0, 8), (8, 48)], [(32, 48), (0, 16), (16, 32)]])
def test_shards_in_one_pass(tmp_path, model, cuts):
    with bn.testing.assert_unchanged(model):
        paths = shards_of(model, tmp_path, cuts)
    assert all(path.stat().st_size < 20_000 for path in paths)
    found = merge(copy.deepcopy(model), paths)
    assert_same(
        {layer.name: (layer.after.mean, layer.after.variance, layer.count) for layer in found.layers if layer.count},
        alone(model, "one-pass"),
    )


def test_shards_one_level_of_layers_a_round(tmp_path, model):
    wanted, held = alone(model, "sequential"), copy.deepcopy(model)
    for level in (1, 2, 3):
        found = merge(held, shards_of(held, tmp_path, [(0, 16), (16, 48)], method="sequential", level=level))
        done = [layer for layer in found.layers if layer.skipped is None]
        assert_same({each.name: (each.after.mean, each.after.variance, each.count) for each in done}, wanted)
    assert not any("next" in note for note in found.notes)


def test_shards_that_do_not_go_together(tmp_path, model):
    first, second = shards_of(model, tmp_path, [(0, 16), (16, 48)])
    with pytest.raises(bn.ArgumentError, match="given twice"):
        merge(model, [first, first])
    other = tmp_path / "other.json"
    collect(model, images(16), other, method="sequential")
    with pytest.raises(bn.ArgumentError, match="another model, method or level"):
        merge(model, [first, other])
    second.write_text("{}")
    with bn.testing.assert_unchanged(model), pytest.raises(bn.ArgumentError, match="no file that collect wrote"):
        merge(model, [first, second])
    with pytest.raises(bn.ArgumentError, match="between 1 and 3"):
        collect(model, images(16), tmp_path / "x.json", method="sequential", level=4)


def test_shards_of_other_weights(tmp_path, model):
    """Fresh networks hold the same batch normalizations, and differ in nothing but their kernels."""
    torch.manual_seed(1)
    other = Branches()
    (first,) = shards_of(model, tmp_path, [(0, 16)])
    (second,) = shards_of(other, tmp_path / "other", [(16, 48)])
    with bn.testing.assert_unchanged(model), pytest.raises(bn.ArgumentError, match="another model, method or level"):
        merge(model, [first, second])
    with bn.testing.assert_unchanged(other), pytest.raises(bn.ArgumentError, match="measured on another model than"):
        merge(other, [first])
    bn.recalibrate(model, images(16), only=["b1"])
    with bn.testing.assert_unchanged(model), pytest.raises(bn.ArgumentError, match="other weights or statistics"):
        merge(model, [first])


def test_a_copy_of_a_shard_counts_once(tmp_path, model):
    first, second = shards_of(model, tmp_path, [(0, 16), (16, 48)])
    copied = tmp_path / "copy.json"
    copied.write_bytes(first.read_bytes())
    with bn.testing.assert_unchanged(model), pytest.raises(bn.ArgumentError, match=r"given twice, also as .*shard0"):
        merge(model, [first, second, copied])


@pytest.mark.parametrize(
    "change",
    [
        lambda moments: moments["m2"].__setitem__(0, -5.0),
        lambda moments: moments["mean"].__setitem__(0, float("nan")),
        lambda moments: moments["mean"].pop(),
        lambda moments: moments.__setitem__("count", -3),
    ],
    ids=["negative variance", "nan", "a channel less", "negative count"],
)
def test_a_damaged_shard(tmp_path, model, change):
    first, second = shards_of(model, tmp_path, [(0, 16), (16, 48)])
    document = json.loads(first.read_text())
    change(document["moments"]["b1"])
    first.write_text(json.dumps(document))
    with bn.testing.assert_unchanged(model), pytest.raises(bn.ArgumentError, match="no file that collect wrote"):
        merge(model, [second, first])


def test_nothing_that_is_read_is_written_over(tmp_path, capsys):
    np.save(tmp_path / "x.npy", images(16))
    data, shard, weights = (str(tmp_path / name) for name in ("x.npy", "shard.json", "net.pt"))
    torch.save(Branches().state_dict(), weights)
    given = ["tests.api.networks:Branches", "--weights", weights]
    assert cli.run(["collect", *given, "--data", data, "-o", shard]) == 0
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    for command in (
        ["collect", *given, "--data", data, "-o", weights],
        ["collect", *given, "--data", data, "-o", data],
        ["recalibrate", *given, "--data", data, "-o", data],
        ["recalibrate", *given, "--data", data, "-o", weights],
        ["merge", *given, shard, "-o", shard],
    ):
        assert cli.run([*command, "--force"]) == 2, command
        assert "is the input, which is never overwritten" in capsys.readouterr().err
    assert before == {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}


def test_the_commands(tmp_path, capsys):
    subject, parts = "tests.api.networks:Branches", []
    for number, (start, end) in enumerate(((0, 16), (16, 48))):
        np.save(tmp_path / "x.npy", images(48)[start:end])
        parts.append(str(tmp_path / f"{number}.json"))
        torch.manual_seed(0)
        assert cli.run(["collect", subject, "--data", str(tmp_path / "x.npy"), "-o", parts[-1]]) == 0
    torch.manual_seed(0)
    out = tmp_path / "out.pt"
    assert cli.run(["merge", subject, *parts, "-o", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["method"] == "merge"
    assert torch.load(out, weights_only=True)["b1.running_mean"][0] == np.float32(
        document["layers"][0]["after"]["mean"][0]
    )
    np.save(tmp_path / "x.npy", np.zeros((4, 2, 8, 8), "f"))
    assert cli.run(["collect", subject, "--data", str(tmp_path / "x.npy"), "-o", str(tmp_path / "bad.json")]) == 2
    assert "refuses an input" in capsys.readouterr().err
    assert not (tmp_path / "bad.json").exists()
    assert cli.run(["merge", subject, str(tmp_path / "none.json"), "-o", str(tmp_path / "o.pt")]) == 2
    assert "No such file" in capsys.readouterr().err


# -- resumed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "runs"), [("one-pass", 3), ("sequential", 9), ("sequential", 14)])
def test_an_interrupted_run_goes_on_from_its_checkpoint(tmp_path, model, monkeypatch, method, runs):
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    wanted, place = alone(model, method), tmp_path / "run.json"
    left = [runs]

    class Loader:
        def __iter__(self):
            for start in range(0, 48, 8):
                yield images(48)[start : start + 8]

    def counting(bench, batch, *given, inner=bn.api.passes.measured):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return inner(bench, batch, *given)

    monkeypatch.setattr("batchnorm.api.passes.measured", counting)
    monkeypatch.setattr("batchnorm.api.passes.Checkpoint", lambda *given: checkpoints.Checkpoint(*given, every=0))
    with bn.testing.assert_unchanged(model), pytest.raises(KeyboardInterrupt):
        bn.recalibrate(model, Loader(), method=method, batch_size=8, checkpoint=place)
    assert place.exists()
    total = 6 if method == "one-pass" else 18
    left[0] = total - runs
    found = bn.recalibrate(model, Loader(), method=method, batch_size=8, checkpoint=place)
    assert left[0] == 0
    assert not place.exists()
    for layer in found.layers:
        np.testing.assert_array_equal(layer.after.mean, wanted[layer.name].after.mean)
        np.testing.assert_array_equal(layer.after.variance, wanted[layer.name].after.variance)


def interrupted(model, place, data, **more):
    """Half a pass, and a checkpoint of it."""

    class Broken:
        runs = 0

        def __iter__(self):
            self.runs += 1
            for start in range(0, 48, 8):
                if start == 32 and self.runs > 1:
                    raise KeyboardInterrupt
                yield data[start : start + 8]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchnorm.api.passes.Checkpoint", lambda *given: checkpoints.Checkpoint(*given, every=0))
        with pytest.raises(KeyboardInterrupt):
            bn.recalibrate(model, Broken(), checkpoint=place, **more)
    assert place.exists()


def test_a_checkpoint_belongs_to_its_layers_data_and_weights(tmp_path, model):
    place = tmp_path / "run.json"
    interrupted(model, place, images(48), only=["b1"])
    whole = [images(48)[start : start + 8] for start in range(0, 48, 8)]
    torch.manual_seed(1)
    for other, data, only in ((model, whole, ()), (model, whole[::-1], ["b1"]), (Branches(), whole, ["b1"])):
        with bn.testing.assert_unchanged(other), pytest.raises(bn.ArgumentError, match="is that of another"):
            bn.recalibrate(other, data, only=only, checkpoint=place)
    wanted = bn.recalibrate(copy.deepcopy(model), whole, only=["b1"]).layers[0].after
    found = bn.recalibrate(model, whole, only=["b1"], checkpoint=place).layers[0].after
    np.testing.assert_array_equal(found.variance, wanted.variance)


def test_a_damaged_checkpoint(tmp_path, model):
    place = tmp_path / "run.json"
    interrupted(model, place, images(48))
    document = json.loads(place.read_text())
    document["moments"]["b1"].pop("m2")
    place.write_text(json.dumps(document))
    whole = [images(48)[start : start + 8] for start in range(0, 48, 8)]
    with pytest.raises(bn.ArgumentError, match=r"--checkpoint: .*run.json is damaged"):
        bn.recalibrate(model, whole, checkpoint=place)
    with pytest.raises(bn.ArgumentError, match="--checkpoint: cannot write"):  # before the work, not 30 s into it
        bn.recalibrate(model, whole, checkpoint=tmp_path / "none" / "run.json")


def test_a_checkpoint_of_another_run_is_refused(tmp_path, model):
    (tmp_path / "c.json").write_text('{"schema": "batchnorm/checkpoint/1", "key": "x"}')
    with pytest.raises(bn.ArgumentError, match="another model, method, batch size or data"):
        bn.recalibrate(model, images(16), checkpoint=tmp_path / "c.json")
    (tmp_path / "c.json").write_text("[]")
    with bn.testing.assert_unchanged(model), pytest.raises(bn.ArgumentError, match="no checkpoint"):
        bn.recalibrate(model, images(16), checkpoint=tmp_path / "c.json")


# -- Ray ---------------------------------------------------------------------------------------------------------------

RAY = """
import copy, json, os, sys
import numpy as np, torch
import batchnorm as bn
from batchnorm.api import fleet
from tests.api.networks import Branches
from tests.api.test_recalibrate import images

torch.set_num_threads(1)
torch.manual_seed(0)
model, folder = Branches(), sys.argv[1]
own = fleet.task

def fragile(*given):
    "Dies once, in the middle of the data: the worker, its loaded model and its part are lost."
    place = os.path.join(folder, "died")
    if given[3][0][0] == 2 and not os.path.exists(place):
        open(place, "w").close()
        os._exit(1)
    return own(*given)

def layers(found):
    return {each.name: [each.after.mean.tolist(), each.after.variance.tolist(), each.count] for each in found.layers}

if __name__ == "__main__":
    import ray
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    fleet.task = fragile
    found = {}
    for method in ("one-pass", "sequential"):
        found[method] = layers(bn.recalibrate(copy.deepcopy(model), images(48), method=method, batch_size=8, workers=2))
    assert os.path.exists(os.path.join(folder, "died"))
    try:
        bn.recalibrate(model, np.zeros((8, 2, 8, 8), "f"), workers=2)
    except bn.ArgumentError as error:
        found["error"] = str(error)
    from tests.api.test_recalibrate_padding import MASK, Net, batches
    for method in ("one-pass", "sequential"):
        spread = bn.recalibrate(Net(), batches(mask=MASK), method=method, workers=2)
        found[f"padded {method}"] = layers(spread)
    found["note"] = spread.notes[-1]
    ray.shutdown()
    print(json.dumps(found))
"""


def test_ray_with_a_worker_that_dies(tmp_path, model):
    pytest.importorskip("ray")
    from tests.api.test_recalibrate_padding import MASK, Net, batches

    script = tmp_path / "fleet.py"
    script.write_text(RAY)
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, script, tmp_path], cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    for method in ("one-pass", "sequential"):
        assert_same(found[method], alone(model, method))
        padded = bn.recalibrate(Net(), batches(mask=MASK), method=method)
        assert_same(found[f"padded {method}"], {layer.name: layer for layer in padded.layers})
    assert found["note"] == padded.notes[-1]
    assert "refuses an input" in found["error"]
