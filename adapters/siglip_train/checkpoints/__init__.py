"""Checkpoints of our own, and weights from and to other projects' layouts."""

from siglip_train.checkpoints.big_vision import params_from_big_vision
from siglip_train.checkpoints.files import (
    CheckpointError,
    append_whole,
    keep_newest,
    latest_checkpoint,
    load_checkpoint,
    load_latest,
    read_safetensors,
    save_checkpoint,
    step_path,
    write_atomically,
)
from siglip_train.checkpoints.huggingface import params_from_huggingface, params_to_huggingface

__all__ = [
    "CheckpointError",
    "append_whole",
    "keep_newest",
    "latest_checkpoint",
    "load_checkpoint",
    "load_latest",
    "params_from_big_vision",
    "params_from_huggingface",
    "params_to_huggingface",
    "read_safetensors",
    "save_checkpoint",
    "step_path",
    "write_atomically",
]
