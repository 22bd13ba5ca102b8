"""Optimizers as pure functions: `update(grads, state, params, …) -> (params, state)`.

None of them multiplies the weight decay by the learning rate, except `adamw_torch_update`.
"""

from siglip_ref.optim.adafactor import AdafactorState, adafactor_init, adafactor_update
from siglip_ref.optim.adamw import adamw_torch_update, adamw_update
from siglip_ref.optim.clip import clip_by_global_norm, clip_factor, global_norm
from siglip_ref.optim.ema import ema_update
from siglip_ref.optim.leaves import kernels_decay
from siglip_ref.optim.lion import LionState, lion_init, lion_update
from siglip_ref.optim.loss_scale import LossScale, loss_scale_update
from siglip_ref.optim.moments import AdamState
from siglip_ref.optim.moments import adam_init as adamw_init
from siglip_ref.optim.schedules import cosine_schedule, linear_schedule, rsqrt_schedule

__all__ = [
    "AdafactorState",
    "AdamState",
    "LionState",
    "LossScale",
    "adafactor_init",
    "adafactor_update",
    "adamw_init",
    "adamw_torch_update",
    "adamw_update",
    "clip_by_global_norm",
    "clip_factor",
    "cosine_schedule",
    "ema_update",
    "global_norm",
    "kernels_decay",
    "linear_schedule",
    "lion_init",
    "lion_update",
    "loss_scale_update",
    "rsqrt_schedule",
]
