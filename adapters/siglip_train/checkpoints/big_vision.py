"""Weights from big_vision's npz files.

Source: big_vision, `models/vit.py`, `models/proj/image_text/`; the layouts of the released files.
"""

import re
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from siglip_ref import SiglipConfig, check_params, param_shapes
from siglip_ref.tree import unflatten
from siglip_ref.types import Tree
from siglip_train.checkpoints.floats import to_float_array

_PARTS = (  # their names, in order of replacement, and ours
    ("img/embedding/", "img/patch_embed/"),
    ("img/Transformer/", "img/"),
    ("img/MAPHead_0/", "img/map_head/"),
    ("map_head/LayerNorm_0/", "map_head/ln/"),
    ("txt/Embed_0/", "txt/embed/"),
    ("txt/Encoder_0/", "txt/"),
    ("LayerNorm_0/", "ln_0/"),
    ("LayerNorm_1/", "ln_1/"),
    ("MultiHeadDotProductAttention_0/", "attn/"),
    ("MlpBlock_0/Dense_0/", "mlp/dense_0/"),
    ("MlpBlock_0/Dense_1/", "mlp/dense_1/"),
)


def params_from_big_vision(arrays: Mapping[str, Any], config: SiglipConfig) -> Tree:
    """Our parameters from the arrays of a released file, as `numpy.load` gives them.

    All layouts in circulation are read: names with and without `params/` in front, layers numbered
    (`encoderblock_3`) or stacked along a first axis (`encoderblock`). Axes are merged only where
    big_vision has more of them: a transposed kernel of the right size is refused.

    Raises ValueError, listing the paths, if what is there does not fit `config`, TypeError for
    arrays that are not of a floating dtype.
    """
    shapes = param_shapes(config)
    leaves: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        for path, leaf in _ours(name.removeprefix("params/"), to_float_array(name, array)).items():
            known = path in shapes and leaf.shape in _their_shapes(path, config)
            leaves[path] = leaf.reshape(shapes[path]) if known else leaf
    params = unflatten(leaves)
    check_params(params, config)
    return params


def _ours(name: str, array: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Our path, or for stacked layers our paths, and the arrays there."""
    if name == "t":
        return {"t_prime": array}
    for theirs, ours in _PARTS:
        name = name.replace(theirs, ours)
    numbered = re.sub(r"encoderblock_(\d+)/", lambda m: f"block/{int(m[1]):02d}/", name)
    if "encoderblock/" not in numbered:
        return {numbered: array}
    return {
        numbered.replace("encoderblock/", f"block/{index:02d}/"): layer
        for index, layer in enumerate(array)
    }


def _their_shapes(path: str, config: SiglipConfig) -> list[tuple[int, ...]]:
    """The shapes of a parameter in big_vision, where they are not ours.

    The position embedding of the NaFlex checkpoints keeps its grid.
    """
    tower = config.image if path.startswith("img/") else config.text
    d, h = tower.width, tower.num_heads
    p, grid = config.image.patch_size, config.image.grid
    shapes: list[tuple[int, ...]] = []
    match path.split("/"):
        case ["t_prime" | "b"]:
            shapes = [(1,)]
        case [*_, "attn", "query" | "key" | "value", "kernel"]:
            shapes = [(d, h, d // h)]
        case [*_, "attn", "query" | "key" | "value", "bias"]:
            shapes = [(h, d // h)]
        case [*_, "attn", "out", "kernel"]:
            shapes = [(h, d // h, d)]
        case [*_, "probe"]:
            shapes = [(1, 1, d)]
        case ["img", "patch_embed", "kernel"]:
            shapes = [(p, p, 3, d)]
        case ["img", "pos_embedding"]:
            shapes = [(1, grid**2, d), (grid, grid, d)]
        case ["txt", "pos_embedding"]:
            shapes = [(1, config.text.context_length, d)]
    return shapes
