"""A step of data-parallel training in Torch with open_clip's loss or ours, on one rank of several.

The two towers are linear maps, wrapped in DistributedDataParallel as a user would.
"""

import numpy as np

SIZES = (7, 5, 4)
"""Of an image, of a text, and of their embeddings."""


def step(rank, world_size, kind, dist_impl, counts):
    """The loss of this rank, and the gradients of all parameters after the mean over the ranks."""
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(towers())
    loss = loss_class(kind)(rank=rank, world_size=world_size, dist_impl=dist_impl)
    value = loss(*model(*pairs(rank, counts[rank])))
    value.backward()
    return value.item(), [p.grad.numpy() for p in model.module.parameters()]


def step_as_another_rank(rank, world_size):
    """Our loss, told that it is on the rank to the right."""
    other = (rank + 1) % world_size
    return loss_class("ours")(rank=other, world_size=world_size)(*towers()(*pairs(rank, 3))).item()


def loss_class(kind):
    """`SigLipLoss`, of `open_clip` or `ours`."""
    if kind == "open_clip":
        from subjects.open_clip import losses

        return losses().SigLipLoss
    import siglip_torch

    return siglip_torch.SigLipLoss


def pairs(seed, n):
    """Some images and texts in float64."""
    import torch

    rng = np.random.default_rng(seed)
    return tuple(torch.tensor(rng.standard_normal((n, size))) for size in SIZES[:2])


def towers():
    """A module from images and texts to the four arguments of the loss."""
    import torch

    class Towers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            rng = np.random.default_rng(99)

            def parameter(*shape):
                return torch.nn.Parameter(torch.tensor(rng.standard_normal(shape)))

            self.image, self.text = (parameter(size, SIZES[2]) for size in SIZES[:2])
            self.t_prime, self.b = parameter(), parameter()

        def forward(self, images, texts):
            normalize = torch.nn.functional.normalize
            embeddings = normalize(images @ self.image), normalize(texts @ self.text)
            return *embeddings, self.t_prime.exp(), self.b

    return Towers()
