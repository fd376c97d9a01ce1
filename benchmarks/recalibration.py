"""What recalibration brings and costs: the tables of README.

``python benchmarks/recalibration.py [accuracy] [cost] [workers]``; all of them by default. One process a framework.

accuracy: the digits network, trained for 30 steps at momentum .99 (1 - .01 as PyTorch counts), five seeds: accuracy in
inference mode before and after, and in training mode at batch 128. cost: the processor time of a pass with its
statistics over that of a forward; memory over the number of samples. workers: two processes of Ray beside one, one
thread each.
"""

import copy
import os
import statistics
import sys
import time
import tracemalloc

import numpy as np
import torch
from torch import nn

import batchnorm as bn

torch.set_num_threads(1)  # what is measured is work, not how busy the other processors are
SEEDS, STEPS, BATCH = 5, 30, 128


class Digits(nn.Module):
    """A small residual network for 8 x 8 images."""

    def __init__(self, width=16):
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, 1e-3, 0.01)
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, 1e-3, 0.01)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, 1e-3, 0.01)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        """Logits, or features."""
        x = self.stem_bn(self.stem(x)).relu()
        x = (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


def digits(seed):
    """Images and labels to train on, and to test on."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    images = (images[order].reshape(-1, 1, 8, 8) / 16).astype("float32")
    return (images[:1400], labels[order][:1400]), (images[1400:], labels[order][1400:])


def trained(seed, x, y):
    """A network after a few steps, its moving averages hardly begun."""
    torch.manual_seed(seed)
    model = Digits().train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        rows = rng.choice(len(x), 64, replace=False)
        loss = nn.functional.cross_entropy(model(torch.from_numpy(x[rows])), torch.from_numpy(y[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def score(model, x, y, *, training=False):
    """Accuracy in percent; in training mode batch by batch of 128, on a copy that forgets what it saw."""
    model = copy.deepcopy(model).train(training)
    with torch.no_grad():
        found = torch.cat([model(part) for part in torch.from_numpy(x).split(BATCH)])
    return 100 * float(np.mean(found.argmax(1).numpy() == y))


def accuracy():
    """The table of accuracies, and that both methods come within a point of training mode."""
    rows = {"before": [], "--debias": [], "one-pass": [], "sequential": [], "training mode, batch 128": []}
    for seed in range(SEEDS):
        (x, y), (test, labels) = digits(seed)
        model = trained(seed, x, y)
        rows["before"].append(score(model, test, labels))
        rows["training mode, batch 128"].append(score(model, test, labels, training=True))
        for name, how in (("--debias", {"debias": True}), ("one-pass", {"data": x}), ("sequential", {"data": x})):
            twin = copy.deepcopy(model)
            data = how.pop("data", None)
            bn.recalibrate(twin, data, **how, **({} if data is None else {"method": name}))
            rows[name].append(score(twin, test, labels))
    print(f"| digits CNN, {STEPS} steps at momentum .99 | accuracy, mean of {SEEDS} seeds | lowest | highest |")
    print("|---|---|---|---|")
    for name, values in rows.items():
        print(f"| {name} | {statistics.mean(values):.1f} % | {min(values):.1f} | {max(values):.1f} |")
    wanted = statistics.mean(rows["training mode, batch 128"]) - 1
    assert all(statistics.mean(rows[name]) >= wanted for name in ("one-pass", "sequential"))


class Deep(nn.Module):
    """Four stages of 3 x 3 convolutions: bound by arithmetic, as networks are."""

    def __init__(self, width=64, depth=6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth))

    def forward(self, x):
        """Logits, or features."""
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).relu()
        return x.mean((2, 3))


def cost():
    """What the statistics cost."""
    torch.manual_seed(0)
    model, x = Deep(), np.random.default_rng(0).normal(0, 1, (32, 3, 32, 32)).astype("float32")
    bench = bn.load(model).bench()
    names = [record.name for record in bench.records]
    tensor = torch.from_numpy(x)
    times = {"forward, inference": [], "forward, training": [], "one-pass": [], "one layer of a sequential pass": []}
    train = copy.deepcopy(model).train()
    with bench.session():
        for _ in range(9):
            times["forward, inference"].append(timed(lambda: bench.outputs(x)))
            with torch.no_grad():
                times["forward, training"].append(timed(lambda: train(tensor)))
            times["one-pass"].append(timed(lambda: bench.measure(x, names, names)))
            times["one layer of a sequential pass"].append(timed(lambda: bench.measure(x, names[-1:])))
    print("\n| batch of 32 x 64 x 32 x 32, six layers | ms | of a forward in inference | of one in training |")
    print("|---|---|---|---|")
    inference, training = (statistics.median(times[name]) for name in ("forward, inference", "forward, training"))
    for name, values in times.items():
        each = statistics.median(values)
        print(f"| {name} | {1e3 * each:.1f} | {each / inference:.3f} | {each / training:.3f} |")
    memory()


def memory():
    """The highest use of memory on 512 and on 4096 samples; the first run imports what is needed."""
    sizes = []
    for count in (512, 512, 4096):
        rng = np.random.default_rng(0)
        batches = lambda count=count, rng=rng: (rng.normal(0, 1, (64, 16)).astype("f") for _ in range(count // 64))  # noqa: E731
        model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
        tracemalloc.start()
        bn.recalibrate(model, batches)
        sizes.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    print(f"\nmemory at its highest, 8 times the samples: {sizes[2] / sizes[1]:.2f} times")


def timed(call, clock=time.process_time):
    """Seconds of this process' own work, which a busy machine does not change."""
    start = clock()
    call()
    return clock() - start


def workers():
    """Two workers beside one; the tasks alone, without starting Ray."""
    import ray

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = Deep(), np.random.default_rng(0).normal(0, 1, (256, 3, 32, 32)).astype("float32")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    from batchnorm.api.checkpoints import Checkpoint
    from batchnorm.api.fleet import FleetRun
    from batchnorm.api.passes import LocalRun
    from batchnorm.api.progress import Silent
    from batchnorm.api.streams import Stream

    times = {1: [], 2: []}
    stream = Stream(x, 16)
    bench = bn.load(model).bench()
    names = [record.name for record in bench.records]
    with bench.session():
        local = LocalRun(bench, stream, Silent().step, Checkpoint(None, ""))
        fleets = {n: FleetRun(model, local, stream, Silent().step, workers=n, address=None, training=()) for n in times}
        for fleet in fleets.values():
            fleet.__enter__()
        for round in range(4):  # interleaved; the first loads the model in both workers
            for n, fleet in fleets.items():
                seconds = timed(lambda fleet=fleet: fleet(names[-1:], 0, 0), time.perf_counter)
                if round:
                    times[n].append(seconds)
    ray.shutdown()
    one, two = (statistics.median(times[n]) for n in (1, 2))
    print(f"\none worker {one:.2f} s, two {two:.2f} s: {one / two:.2f} times as fast")


if __name__ == "__main__":
    for part in sys.argv[1:] or ("accuracy", "cost", "workers"):
        {"accuracy": accuracy, "cost": cost, "workers": workers}[part]()
