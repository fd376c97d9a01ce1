"""One rank of a job: ``python recalibrate_job.py RANK WORLD FILE METHOD``; the last of three or more has no data."""

import copy
import json
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from tests.api.networks import Branches
from tests.api.test_recalibrate import images

import batchnorm as bn
from batchnorm.api.checkpoints import Checkpoint


def run(checkpoint, until=None):
    """Layer by layer with a checkpoint, broken off once so many levels are done; what came of it."""
    own = Checkpoint.finished

    def finished(self, number, done):
        own(self, number, done)
        if number == until:
            raise KeyboardInterrupt

    try:
        with mock.patch.object(Checkpoint, "finished", finished):
            twin = copy.deepcopy(model)
            group = dist.group.WORLD
            return layers(bn.recalibrate(twin, mine, method="sequential", process_group=group, checkpoint=checkpoint))
    except (bn.ArgumentError, bn.Refused) as error:
        return str(error)
    except KeyboardInterrupt:
        return "broken off"


def checkpoints(folder):
    """Every way in which the files of two ranks do not go together; then files that do."""
    place, found = folder / f"rank{rank}.json", {}
    found["shared"] = run(folder / "one.json")
    place.write_text("{}" if rank == 0 else "")
    if rank:
        place.unlink()
    found["of none"] = run(place)
    place.unlink(missing_ok=True)
    found["first"], first = run(place, until=0), place.read_bytes()
    found["second"], second = run(place, until=1), place.read_bytes()
    place.write_bytes(first if rank else second)
    found["of two levels"] = run(place)
    place.write_bytes(second)
    found["resumed"] = run(place)
    found["left behind"] = place.exists()
    return found


def layers(found):
    """Each layer's new statistics and count, as JSON holds them."""
    return {each.name: [each.after.mean.tolist(), each.after.variance.tolist(), each.count] for each in found.layers}


rank, world, meeting, method = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
torch.manual_seed(0)
model = Branches()
batches = [images(48)[start : start + 8] for start in range(0, 48, 8)]
# Unequal parts in order: 1 and 5 batches of two ranks; 1, 5 and none of three; 1, none, 2 and 3 of four.
cuts = [0, 1, 1, 3, 6] if world == 4 else [0, 1, 6, 6]
mine = batches[cuts[rank] : cuts[rank + 1]]
if method == "broken":
    try:
        bn.recalibrate(model, mine if rank else [torch.zeros(4, 2, 8, 8)], process_group=dist.group.WORLD)
    except (bn.ArgumentError, bn.Refused) as error:
        print(json.dumps(str(error)))
elif method == "checkpoints":
    print(json.dumps(checkpoints(Path(meeting).parent)))
elif method == "padded":
    from tests.api.padded import LENGTHS
    from tests.api.test_recalibrate_padding import Net, batches

    padded, found = batches(lengths=LENGTHS), {}
    for each in ("one-pass", "sequential"):
        mine = padded[3:] if rank else padded[:3]
        found[each] = layers(bn.recalibrate(Net(), mine, method=each, process_group=dist.group.WORLD))
    print(json.dumps(found))
else:
    found = bn.recalibrate(model, mine, method=method, process_group=dist.group.WORLD)
    print(json.dumps({"layers": layers(found), "gap": found.gap.after}))
dist.barrier()  # none leaves while another still talks to it
dist.destroy_process_group()
