"""Weights between Hugging Face's `SiglipModel` / `Siglip2Model` and our tree.

Torch stores a linear map as (d_out, d_in), a convolution as (d_out, c, p, p), and the three input
projections of the MAP head stacked in one matrix.

Source: transformers 5.23, `modeling_siglip.py`, `modeling_siglip2.py`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siglip_ref import SiglipConfig, check_params
from siglip_ref.tree import flatten, unflatten
from siglip_ref.types import Tree
from siglip_train.checkpoints.floats import to_float_array

_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}


def params_from_huggingface(state_dict: Mapping[str, Any], config: SiglipConfig) -> Tree:
    """Our parameters from a state dict of Torch tensors or NumPy arrays, copied in its dtype.

    Half precision becomes float32. The patch embedding may be a convolution (`SiglipModel`) or
    a linear map of patches flattened by row, column and channel (`Siglip2Model`).

    Raises ValueError, listing the names, if tensors are missing, unknown, or of a wrong shape,
    TypeError if they are not of a floating dtype.
    """
    tensors = {
        name: tensor for name, tensor in state_dict.items() if not name.endswith("position_ids")
    }
    if config.text.out_dim is None:
        _drop_identity_head(tensors)
    wanted = _names(config)
    missing, unknown = wanted.values() - tensors.keys(), tensors.keys() - wanted.values()
    if missing or unknown:
        raise ValueError(
            "state_dict does not fit config: "
            + "; ".join(
                [f"missing {n}" for n in sorted(missing)]
                + [f"unknown {n}" for n in sorted(unknown)]
            )
        )
    params = unflatten(
        {
            path: _from_torch(path, to_float_array(name, tensors[name]))
            for path, name in wanted.items()
        }
    )
    check_params(params, config)
    return params


def params_to_huggingface(params: Tree, config: SiglipConfig) -> dict[str, NDArray[Any]]:
    """The state dict of a `SiglipModel` with our parameters, as NumPy arrays.

    A model without a text head gets the identity there, as the released one has.

    Raises ValueError if the parameters do not fit the configuration.
    """
    check_params(params, config)
    leaves = flatten(params)
    state: dict[str, list[NDArray[Any]]] = {}
    for path, name in _names(config).items():
        state.setdefault(name, []).append(_to_torch(path, leaves[path], config.image.patch_size))
    # In C order, which safetensors takes for granted when it writes an array.
    result = {name: np.ascontiguousarray(np.concatenate(parts)) for name, parts in state.items()}
    if config.text.out_dim is None:
        head, width = "text_model.head", config.text.width
        dtype = leaves["t_prime"].dtype
        result |= {
            f"{head}.weight": np.eye(width, dtype=dtype),
            f"{head}.bias": np.zeros(width, dtype),
        }
    return result


def _names(config: SiglipConfig) -> dict[str, str]:
    """The name of the tensor that holds each of our parameters."""
    names = {"t_prime": "logit_scale", "b": "logit_bias"}
    image, text = "vision_model", "text_model"
    names |= _linear("img/patch_embed", f"{image}.embeddings.patch_embedding")
    names["img/pos_embedding"] = f"{image}.embeddings.position_embedding.weight"
    names |= _encoder("img", image, config.image.depth) | _norm(
        "img/encoder_norm", f"{image}.post_layernorm"
    )
    ours, theirs = "img/map_head", f"{image}.head"
    names[f"{ours}/probe"] = f"{theirs}.probe"
    for projection in ("query", "key", "value"):
        names[f"{ours}/attn/{projection}/kernel"] = f"{theirs}.attention.in_proj_weight"
        names[f"{ours}/attn/{projection}/bias"] = f"{theirs}.attention.in_proj_bias"
    names |= _linear(f"{ours}/attn/out", f"{theirs}.attention.out_proj")
    names |= _norm(f"{ours}/ln", f"{theirs}.layernorm") | _mlp(f"{ours}/mlp", f"{theirs}.mlp")
    names["txt/embed/embedding"] = f"{text}.embeddings.token_embedding.weight"
    names["txt/pos_embedding"] = f"{text}.embeddings.position_embedding.weight"
    names |= _encoder("txt", text, config.text.depth) | _norm(
        "txt/encoder_norm", f"{text}.final_layer_norm"
    )
    return names if config.text.out_dim is None else names | _linear("txt/head", f"{text}.head")


def _encoder(ours: str, theirs: str, depth: int) -> dict[str, str]:
    names: dict[str, str] = {}
    for index in range(depth):
        block, layer = f"{ours}/block/{index:02d}", f"{theirs}.encoder.layers.{index}"
        names |= _norm(f"{block}/ln_0", f"{layer}.layer_norm1")
        names |= _norm(f"{block}/ln_1", f"{layer}.layer_norm2")
        names |= _mlp(f"{block}/mlp", f"{layer}.mlp")
        for projection, name in _PROJECTIONS.items():
            names |= _linear(f"{block}/attn/{projection}", f"{layer}.self_attn.{name}")
    return names


def _linear(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/kernel": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}


def _norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}


def _mlp(ours: str, theirs: str) -> dict[str, str]:
    return _linear(f"{ours}/dense_0", f"{theirs}.fc1") | _linear(f"{ours}/dense_1", f"{theirs}.fc2")


def _from_torch(path: str, tensor: NDArray[Any]) -> NDArray[Any]:
    """The tensor as our parameter; one of a wrong shape is left for `check_params` to name."""
    if path in ("t_prime", "b"):
        return tensor.reshape(()) if tensor.shape == (1,) else tensor
    if path.endswith("/probe"):
        return tensor.reshape(1, -1)
    third = _third_of_stack(path)
    if third is not None:
        tensor = np.array_split(tensor, 3)[third]
    if path == "img/patch_embed/kernel" and tensor.ndim == 4:
        return np.ascontiguousarray(tensor.transpose(2, 3, 1, 0)).reshape(-1, tensor.shape[0])
    return np.ascontiguousarray(tensor.T) if path.endswith("/kernel") else tensor


def _to_torch(path: str, leaf: NDArray[Any], patch_size: int) -> NDArray[Any]:
    if path in ("t_prime", "b"):
        return leaf.reshape(1)
    if path.endswith("/probe"):
        return leaf.reshape(1, 1, -1)
    if path == "img/patch_embed/kernel":
        convolution = leaf.reshape(patch_size, patch_size, -1, leaf.shape[1])
        return convolution.transpose(3, 2, 0, 1)
    return leaf.T if path.endswith("/kernel") else leaf


def _third_of_stack(path: str) -> int | None:
    """Which third of the stacked MAP projections a parameter is, if it is one."""
    for index, projection in enumerate(("query", "key", "value")):
        if path.startswith(f"img/map_head/attn/{projection}/"):
            return index
    return None


def _drop_identity_head(tensors: dict[str, Any]) -> None:
    for name, kind in (
        ("text_model.head.weight", "the identity"),
        ("text_model.head.bias", "zero"),
    ):
        if name not in tensors:
            continue
        head = to_float_array(name, tensors.pop(name))
        wanted = np.eye(len(head)) if kind == "the identity" else np.zeros(len(head))
        if not np.array_equal(head, wanted):
            raise ValueError(
                f"{name} must be {kind} for a config without a text head (out_dim=None), "
                "got other values"
            )
