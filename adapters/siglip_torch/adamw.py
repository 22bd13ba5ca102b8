"""AdamW of one parameter by Torch's fused kernel, over the parameter and its moments."""

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from siglip_ref.optim.adamw import AdamwRates
from siglip_ref.optim.adamw import adamw_leaf as formula
from siglip_ref.optim.leaves import Factor
from siglip_ref.types import Count, Float


@torch.no_grad()
def adamw_leaf(
    p: Float[Tensor, "*shape"],
    g: Float[Tensor, "*shape"],
    mu: Float[Tensor, "*shape"],
    nu: Float[Tensor, "*shape"],
    count: Count,
    factor: Factor,
    rates: AdamwRates,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `siglip_ref.optim.adamw.adamw_leaf` gives, to rounding, in the memory of `p`, `mu` and
    `nu`.

    Tensors of mixed precisions, or elsewhere than on the host, go to the core's function, and so
    does a rate of 0: it makes new tensors.
    """
    if rates.lr == 0 or not _fit(p, g, mu, nu):
        return formula(p, g, mu, nu, count, factor, rates)
    adamw(
        [p],
        [g],
        [mu],
        [nu],
        [],
        [torch.tensor(float(count) - 1)],
        fused=True,
        amsgrad=False,
        maximize=False,
        lr=rates.lr * float(factor),
        weight_decay=(rates.weight_decay or 0.0) / rates.lr,  # which Torch multiplies by the rate
        beta1=rates.beta1,
        beta2=rates.beta2,
        eps=rates.eps,
    )
    return p, mu, nu


def _fit(*tensors: Tensor) -> bool:
    first = tensors[0]
    return first.dtype in (torch.float32, torch.float64) and all(
        x.device.type == "cpu"
        and x.dtype == first.dtype
        and x.shape == first.shape
        and x.is_contiguous()
        for x in tensors
    )
