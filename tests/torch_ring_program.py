"""What the ranks do in the tests of the ring over torch.distributed, each in its own process.

torchrun --nproc-per-node 2 torch_ring_program.py [fault in mid-ring] [on which rank]
"""

import copy
import pickle
import sys
import threading
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import siglip_ref as sr
from ring_program import TIMEOUT, Faulty
from siglip_torch import SigLipLoss, TorchCommunicator, world

T_PRIME, B = np.asarray(1.5), np.asarray(-2.0)


def pairs_of(rank):
    """How many pairs a rank has: an even number, an odd one, or one."""
    return 1 + (3 * rank) % 4


def shard(rank, world_size):
    """The images and texts of a rank, in a batch that is the same wherever it is made."""
    ends = np.cumsum([pairs_of(r) for r in range(world_size)])
    z = np.random.default_rng(world_size).standard_normal((2, ends[-1], 5))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return (np.split(x, ends[:-1])[rank] for x in z)


def three_losses(rank, world_size, comm, asarray=np.asarray):
    """What each loss on the ring returns on this rank."""
    zimg, ztxt, t_prime, b = (asarray(x) for x in (*shard(rank, world_size), T_PRIME, B))
    return (
        sr.ring.sigmoid_loss(zimg, ztxt, t_prime, b, comm, tile=2),
        sr.ring.softmax_loss(zimg, ztxt, t_prime, comm, tile=2),
        sr.ring.allgather_softmax_loss(zimg, ztxt, t_prime, comm),
    )


def losses(rank, world_size):
    """The losses with arrays of NumPy and of Torch, each with the type of what is returned."""
    answers = {}
    with TorchCommunicator(timeout=20) as comm:
        for name, asarray in (("ndarray", np.asarray), ("Tensor", torch.from_numpy)):
            found = three_losses(rank, world_size, comm, asarray)
            kinds = {type(x).__name__ for loss, grads in found for x in (loss, *grads)}
            assert kinds <= {name, "float64"}, kinds
            answers[name] = [(float(loss), [np.asarray(g) for g in grads]) for loss, grads in found]
    return answers


def collectives(rank, world_size, parts):
    """The sums over the ranks of arrays, and the numbers of all."""
    with TorchCommunicator(timeout=20) as comm:
        return [comm.sum(part) for part in parts], comm.gather((rank, 10 * rank)), comm.gather(())


def hops(rank, world_size, arrays):
    """What arrives from the left."""
    with TorchCommunicator(timeout=20) as comm:
        first = comm.start_shift(arrays, rows=pairs_of((rank - 1) % world_size), step=0)
        second = comm.start_shift(arrays[:1], rows=pairs_of((rank - 1) % world_size), step=0)
        return *first.wait(), *second.wait()


def answer(rank, world_size, operation, arrays):
    """A loss of the conformance kit on this rank's shards."""
    loss = {"ring_sigmoid_loss": sr.ring.sigmoid_loss, "ring_softmax_loss": sr.ring.softmax_loss}
    with TorchCommunicator(timeout=20) as comm:
        value, grads = loss[operation](*(torch.from_numpy(np.array(x)) for x in arrays), comm)
    return value.numpy(), {name: grad.numpy() for name, grad in grads._asdict().items()}


def run_with_fault(rank, world_size, fault, at, group=None):
    """What stops this rank when one has a fault in mid-ring: its kind, ranks, step, text, time."""
    start = time.monotonic()
    try:
        with TorchCommunicator(group, timeout=TIMEOUT) as whole:
            comm = Faulty(whole, fault) if rank == at else whole
            three_losses(rank, world_size, comm)
            sr.ring.sum_gradients(
                {"kernel": np.ones(9000 + (fault == "long" and rank == at))}, whole
            )
    except Exception as error:
        where = getattr(error, "ranks", None), getattr(error, "step", None)
        return type(error).__name__, *where, str(error), time.monotonic() - start
    raise AssertionError("nothing has stopped this rank")


def faulty(rank, world_size, fault, at):
    """The same in a group of its own, since a group is of no use after a fault."""
    return run_with_fault(rank, world_size, fault, at, dist.new_group(range(world_size)))


def loss_of(module, rank, dtype=torch.float64, pairs=3):
    """What a `SigLipLoss` says of pairs that differ from rank to rank."""
    rng = np.random.default_rng(rank)
    zimg, ztxt = torch.tensor(rng.standard_normal((2, pairs, 5)), dtype=dtype)
    return module(zimg, ztxt, torch.tensor(4.7), torch.tensor(-2.3))


def life_of_a_module(rank, world_size, folder):
    """How many threads a `SigLipLoss` and its copy have at each time, and what they say."""
    before = threading.active_count()

    def threads(wanted):
        end = time.monotonic() + 10.0
        while threading.active_count() - before != wanted and time.monotonic() < end:
            time.sleep(0.01)
        return threading.active_count() - before

    module = SigLipLoss(rank=rank, world_size=world_size)
    losses, found = [loss_of(module, rank).item()], {"with one": threads(1)}
    copied = pickle.loads(pickle.dumps(copy.deepcopy(module)))
    losses.append(loss_of(copied, rank).item())
    found["with a copy"] = threads(2)
    dist.destroy_process_group()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world_size
    )
    losses += [loss_of(x, rank).item() for x in (module, copied)]
    found["in another group"] = threads(2)
    del module, copied
    found["without"] = threads(0)
    return found, losses


def dtype_of_the_loss(rank, world_size, dtype):
    """The dtype that a `SigLipLoss` gives for features of another."""
    return loss_of(SigLipLoss(rank=rank, world_size=world_size), rank, dtype).dtype


def nothing_on_rank_1(rank, world_size):
    """What every rank hears if rank 1 has no pairs."""
    try:
        loss_of(SigLipLoss(rank=rank, world_size=world_size), rank, pairs=0 if rank == 1 else 3)
    except ValueError as error:
        return str(error)
    return "nothing"


def process(init_method, rank, sizes, faults, at, folder):
    """One of several groups of processes, each with a fault of its own; it says what stops it."""
    options = {"timeout": timedelta(seconds=60), "rank": rank, "world_size": sum(sizes)}
    dist.init_process_group("gloo", init_method=init_method, **options)
    starts = np.cumsum([0, *sizes])
    groups = [dist.new_group(range(a, b)) for a, b in pairwise(starts)]
    which = int(np.searchsorted(starts, rank, side="right")) - 1
    inside = dist.get_rank(groups[which])
    outcome = run_with_fault(inside, sizes[which], faults[which], at, groups[which])
    Path(folder, f"{rank}.txt").write_text(repr(outcome))


if __name__ == "__main__":
    fault, at = (sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else ("", -1)
    with world(timeout=TIMEOUT if fault else 30.0) as ring:
        member = Faulty(ring, fault) if ring.rank == at else ring
        results = three_losses(ring.rank, ring.world_size, member)
        print(f"rank {ring.rank}: {[float(loss) for loss, _ in results]}", flush=True)
