"""The sigmoid loss as a module that takes the place of open_clip's."""

import weakref
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

import siglip_ref as sr
from siglip_ref.communicator import Arrays, Communicator, Shift
from siglip_ref.precision import at_least_float32
from siglip_ref.types import Array, Float
from siglip_torch.communicator import TorchCommunicator
from siglip_torch.functions import outside_of_graphs, sigmoid_loss_at, with_gradients
from siglip_torch.tile_loop import TILE, tiled_sigmoid_loss

EXCHANGES = ("bidir", "shift", "reduce", "gather")
"""open_clip's ways to bring the texts of other ranks here."""

TIMEOUT = 1800.0
"""Seconds that a rank waits for another: as long as Torch's process groups do by default."""


class SigLipLoss(nn.Module):
    """A drop-in for `open_clip.SigLipLoss`: same arguments, same values and gradients.

    The same:
        `forward` takes the temperature t itself, `logit_scale`, not its logarithm. With
        `world_size` > 1 the loss is the one of this rank's images with the texts of all, divided
        by the number of this rank's images. Gradients of embeddings are those of the sum of the
        losses of all ranks, and gradients of `logit_scale` and `logit_bias` are of this rank's loss
        alone, so that the mean that DistributedDataParallel takes is right for all of them.

    Different:
        Nothing of size n x n exists. It computes in float32 or float64, also under autocast and
        for 16-bit embeddings, and returns the loss so. Only first derivatives exist. On several
        ranks all gradients are formed while the loss is, in one rotation of the texts: every rank
        must scale its loss by the same factor before `backward`, no rank communicates in it, and
        the graph that `torch.compile` records breaks here. Ranks may have different numbers of
        pairs; a rank's loss is then the world size times its part of the global one. Texts that
        are not finite raise a RingError on all ranks, and the temperature must be above 0.

    cache_labels, dist_impl
        Checked, and without effect: there are no labels to cache and there is one exchange.
    rank, world_size
        Of the default process group.
    chunk_size
        Rows and columns of a tile of logits.

    Raises ValueError for a `dist_impl` that open_clip does not know, and unless `chunk_size` is a
    positive integer.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl or EXCHANGES[0]
        self.chunk_size = TILE if chunk_size is None else chunk_size
        self._ring = _Ring()
        if self.dist_impl not in EXCHANGES:
            raise ValueError(f"dist_impl must be one of {', '.join(EXCHANGES)}, got {dist_impl!r}")
        if not isinstance(self.chunk_size, int) or self.chunk_size < 1:
            raise ValueError(f"chunk_size must be a positive integer, got {chunk_size!r}")

    def forward(
        self,
        image_features: Float[Tensor, "n d"],
        text_features: Float[Tensor, "n d"],
        logit_scale: Float[Tensor, ""],
        logit_bias: Float[Tensor, ""] | None = None,
        output_dict: bool = False,
    ) -> Float[Tensor, ""] | dict[str, Float[Tensor, ""]]:
        """The loss, or `{"contrastive_loss": loss}`; no bias counts as 0.

        `logit_scale` and `logit_bias` may be Python numbers.

        Raises ValueError on features that are not matrices of one shape with at least one row, and
        if `logit_scale` or `logit_bias` is not one number; on several ranks if there is a rank
        without images or texts, which all ranks hear of, or if `rank` and `world_size` are not
        those of the group.
        TypeError on features that are no tensors or of two precisions, and on a scale or bias that
        is no number at all.
        """
        for name, value in (("image_features", image_features), ("text_features", text_features)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        t = _number("logit_scale", logit_scale, image_features)
        b = _number("logit_bias", 0.0 if logit_bias is None else logit_bias, image_features)
        if self.world_size > 1:
            on_the_ring = outside_of_graphs(self._on_the_ring)
            loss = on_the_ring(image_features, text_features, t, b)
        else:
            shapes = tuple(image_features.shape), tuple(text_features.shape)
            if image_features.ndim != 2 or shapes[0] != shapes[1] or shapes[0][0] < 1:
                raise ValueError(
                    "image_features and text_features must be matrices of one shape with at least "
                    f"one row, got the shapes {shapes[0]} and {shapes[1]}"
                )
            loss = sigmoid_loss_at(image_features, text_features, t, b, tile=self.chunk_size)
        return {"contrastive_loss": loss} if output_dict else loss

    def get_logits(
        self,
        image_features: Float[Tensor, "n d"],
        text_features: Float[Tensor, "m d"],
        logit_scale: Float[Tensor, ""],
        logit_bias: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, "n m"]:
        """t zimg ztxtᵀ + b, all n m of them, under autograd and autocast as any Torch formula."""
        logits = logit_scale * image_features @ text_features.T
        return logits if logit_bias is None else logits + logit_bias

    def get_ground_truth(
        self, device: torch.device, dtype: torch.dtype, num_logits: int, negative_only: bool = False
    ) -> Float[Tensor, "n n"]:
        """The labels of n = `num_logits` pairs: 1 on the diagonal and -1 elsewhere, or all -1."""
        labels = torch.full((num_logits, num_logits), -1.0, device=device, dtype=dtype)
        return labels if negative_only else labels.fill_diagonal_(1.0)

    def _on_the_ring(self, zimg: Tensor, ztxt: Tensor, t: Tensor, b: Tensor) -> Tensor:
        comm = self._ring.of_the_default_group()
        found = comm.rank, comm.world_size
        if found != (self.rank, self.world_size):
            raise ValueError(
                "rank and world_size must be those of the default process group, "
                f"{found[0]} and {found[1]}, got {self.rank} and {self.world_size}"
            )
        compute = partial(_loss_and_grads_of_rank, comm, self.chunk_size)
        return with_gradients(compute, compute, zimg, ztxt, t, b)


class _Ring:
    """The communicator of one module, which lives as long as the module and the process group.

    A copy begins without one.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self._comm: TorchCommunicator | None = None
        self._close: Callable[[], object] | None = None

    def of_the_default_group(self) -> TorchCommunicator:
        """The communicator of the default process group as it is now."""
        group = dist.group.WORLD
        if self._comm is None or group is not self._group:
            if self._close is not None:
                self._close()
            self._comm, self._group = TorchCommunicator(timeout=TIMEOUT), group
            self._close = weakref.finalize(self, self._comm.close)
        return self._comm

    def __reduce__(self) -> tuple[type["_Ring"], tuple[()]]:
        return _Ring, ()


class _OwnParts:
    """A ring on which sums are not taken, so that each rank keeps its own part of them."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.rank, self.world_size = comm.rank, comm.world_size

    def start_shift(self, arrays: Arrays, *, rows: int, step: int) -> Shift:
        return self._comm.start_shift(arrays, rows=rows, step=step)

    def sum(self, array: Array) -> Array:
        return array

    def gather(self, values: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return self._comm.gather(values)


@torch.no_grad()
def _loss_and_grads_of_rank(
    comm: Communicator, tile: int, zimg: Tensor, ztxt: Tensor, t: Tensor, b: Tensor
) -> tuple[Tensor, ...]:
    """W times this rank's part of the global loss, and what autograd would leave here of the sum of
    such losses of all W ranks.
    """
    wide = at_least_float32(zimg)
    loss, grads = sr.ring.sigmoid_loss(
        wide,
        at_least_float32(ztxt),
        t.double().log(),
        at_least_float32(b),
        _OwnParts(comm),
        tile=tile,
        block_loss=tiled_sigmoid_loss,
    )
    loss, dt = loss.to(wide.dtype), grads.dt_prime / t
    return tuple(comm.world_size * x for x in (loss, grads.dzimg, grads.dztxt, dt, grads.db))


def _number(name: str, value: Tensor | float, features: Tensor) -> Tensor:
    """`value`, which may have axes of size 1, as a 0-d tensor.

    A number that is no tensor keeps the digits that a loss of such features is computed with.
    """
    if isinstance(value, Tensor):
        tensor = value
    else:
        dtype = torch.promote_types(features.dtype, torch.float32)
        try:
            tensor = torch.as_tensor(value, dtype=dtype, device=features.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be one number, got {value!r}") from error
    if tensor.numel() != 1:
        raise ValueError(f"{name} must be one number, got the shape {tuple(tensor.shape)}")
    return tensor.reshape(())
