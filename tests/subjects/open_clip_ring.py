"""open_clip's distributed losses on gloo ranks, under the mean of gradients that DDP takes.

Every rank has its own loss over its images, and autograd brings the gradients of the texts home.
DistributedDataParallel averages the gradients of the parameters over the W ranks, and so, by
linearity, those of the embeddings and of the scalars:

    loss = (1/W) Σ loss_r;  dzimg_r, dztxt_r = (1/W) of what is on rank r;  dt', db = (1/W) Σ.
"""

from functools import partial

import numpy as np

from siglip_spec import Subject
from subjects.gloo import Ranks
from subjects.open_clip import SOURCE, losses

RANKS = Ranks(5)
"""As many as in the largest ring of the vectors."""

FORMS = ("bidir", "shift", "reduce", "gather")
EQUAL_SHARDS = (
    "open_clip wants as many pairs on every rank: a rank receives into a tensor of the shape that "
    f"it sends, and would hang or read garbage: {SOURCE}, neighbour_exchange and gather_features"
)
ONE_OF_W = (
    "by ClipLoss's default flags the gradient of an embedding is 1/W of the true one under DDP: "
    "https://github.com/mlfoundations/open_clip/issues/616"
)
UNEVEN = (
    "ring.sigmoid/w2-d5/uneven",
    "ring.sigmoid/w3-d4/uneven",
    "ring.sigmoid/w4-d3/uneven",
    "ring.sigmoid/w3-d5/texts-elsewhere",
    "ring.softmax/w2-d5/uneven",
    "ring.softmax/w3-d4/uneven",
)


def open_clip_rings(dtype: str) -> list[Subject]:
    """`SigLipLoss` in its four distributed forms, `ClipLoss` as advised and as it is by default."""
    advised = {"local_loss": True, "gather_with_grad": True}
    default = {"ring.softmax/w4-d5/even[grad/dz*": ONE_OF_W}
    return [
        *(
            _ring(f"SigLipLoss, {form}", dtype, "SigLipLoss", {"dist_impl": form}, {})
            for form in FORMS
        ),
        _ring("ClipLoss, local_loss and gather_with_grad", dtype, "ClipLoss", advised, {}),
        _ring("ClipLoss, default flags", dtype, "ClipLoss", {}, default),
    ]


def _ring(
    label: str, dtype: str, loss: str, settings: dict[str, object], expected: dict[str, str]
) -> Subject:
    kind = {"SigLipLoss": "sigmoid", "ClipLoss": "softmax"}[loss]
    uneven = {case: EQUAL_SHARDS for case in UNEVEN if f".{kind}/" in case}
    subject = Subject(
        f"open_clip {label}, gloo ranks", dtype=dtype, expected_failures=uneven | expected
    )
    losses()

    def answer(part, zimg, ztxt, t_prime, b=None, dloss=1.0):
        return _over_ranks(zimg, ztxt, t_prime, b, dloss, loss, settings)[part]

    subject.provides(f"ring_{kind}_loss")(partial(answer, 0))
    subject.provides(f"ring_{kind}_loss_bwd")(partial(answer, 1))
    return subject


def _over_ranks(zimg, ztxt, t_prime, b, dloss, loss, settings):
    """The mean loss, and the gradients by name.

    Raises ValueError for shards of different sizes, on which the ranks would hang.
    """
    if len({len(shard) for shard in (*zimg, *ztxt)}) > 1:
        raise ValueError(f"the shards must be equal, got {[len(shard) for shard in zimg]} pairs")
    scalars = {"t_prime": t_prime} | ({} if b is None else {"b": b})
    found = RANKS.run(
        "subjects.open_clip_ring:on_a_rank",
        [(*shards, scalars, loss, settings) for shards in zip(zimg, ztxt, strict=True)],
    )
    size = len(found)
    gradients = {
        f"d{name}": [grads[name] * dloss / size for _, grads in found] for name in ("zimg", "ztxt")
    }
    for name in scalars:
        gradients[f"d{name}"] = np.asarray(sum(grads[name] for _, grads in found) * dloss / size)
    return np.asarray(sum(value for value, _ in found) / size), gradients


def on_a_rank(rank, world_size, zimg, ztxt, scalars, loss, settings):
    """The loss of this rank and its gradients, as autograd leaves them here."""
    import torch

    leaves = {"zimg": zimg, "ztxt": ztxt, **scalars}
    leaves = {name: torch.from_numpy(np.array(x)).requires_grad_() for name, x in leaves.items()}
    module = getattr(losses(), loss)(rank=rank, world_size=world_size, **settings)
    bias = (leaves["b"],) if "b" in leaves else ()
    value = module(leaves["zimg"], leaves["ztxt"], leaves["t_prime"].exp(), *bias)
    value.backward()
    return value.detach().numpy(), {name: leaf.grad.numpy() for name, leaf in leaves.items()}
