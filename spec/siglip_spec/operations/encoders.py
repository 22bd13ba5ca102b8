"""The operations of the profiles `image`, `text` and `model`: blocks, towers, and both together.

The sizes follow from the parameters; only what they do not show is an attribute.
"""

import math
from collections.abc import Mapping
from typing import Any

import siglip_ref as sr
from siglip_ref import encoders
from siglip_ref.losses import sigmoid_loss_bwd, sigmoid_loss_fwd
from siglip_ref.model import encode_image_bwd, encode_image_fwd, encode_text_bwd, encode_text_fwd
from siglip_ref.types import Array, Tree
from siglip_spec.operations.operation import Answer, Operation, answer

TOWER_ATTRS = ("num_heads", "eps", "norm_eps")
MODEL_ATTRS = ("image_heads", "text_heads", "eps", "norm_eps")


def _block(
    inputs: dict[str, Tree], attrs: Mapping[str, Any], cotangents: Mapping[str, Array]
) -> Answer:
    out, res = encoders.block_fwd(inputs["x"], inputs["params"], attrs["num_heads"], attrs["eps"])
    if not cotangents:
        return answer({"out": out})
    dx, dparams = encoders.block_bwd(res, cotangents["out"])
    return answer({"out": out}, {"dx": dx, "dparams": dparams})


def _map_head(
    inputs: dict[str, Tree], attrs: Mapping[str, Any], cotangents: Mapping[str, Array]
) -> Answer:
    out, res = encoders.map_head_fwd(
        inputs["tokens"], inputs["params"], attrs["num_heads"], attrs["eps"]
    )
    if not cotangents:
        return answer({"out": out})
    dtokens, dparams = encoders.map_head_bwd(res, cotangents["out"])
    return answer({"out": out}, {"dtokens": dtokens, "dparams": dparams})


def _encode_image(
    inputs: dict[str, Tree], attrs: Mapping[str, Any], cotangents: Mapping[str, Array]
) -> Answer:
    images, params = inputs["images"], {"img": inputs["params"]}
    width = inputs["params"]["map_head"]["probe"].shape[-1]
    config = sr.SiglipConfig(
        image=image_config(inputs["params"], images, attrs["num_heads"], attrs["eps"]),
        text=_any_text_config(width),
        l2_norm_eps=attrs["norm_eps"],
    )
    zimg, res = encode_image_fwd(params, images, config)
    if not cotangents:
        return answer({"zimg": zimg})
    _, dparams = encode_image_bwd(res, cotangents["zimg"], config)
    probes = encoders.image_probes(images, inputs["params"], config.image)
    return answer({"zimg": zimg}, {"dparams": dparams}, probes)


def _encode_text(
    inputs: dict[str, Tree], attrs: Mapping[str, Any], cotangents: Mapping[str, Array]
) -> Answer:
    tokens, params = inputs["tokens"], {"txt": inputs["params"]}
    text = text_config(inputs["params"], tokens, attrs["num_heads"], attrs["eps"])
    config = sr.SiglipConfig(
        image=_any_image_config(text.width if text.out_dim is None else text.out_dim),
        text=text,
        l2_norm_eps=attrs["norm_eps"],
    )
    ztxt, res = encode_text_fwd(params, tokens, config)
    if not cotangents:
        return answer({"ztxt": ztxt})
    dparams = encode_text_bwd(res, cotangents["ztxt"], config)
    probes = encoders.text_probes(tokens, inputs["params"], config.text)
    return answer({"ztxt": ztxt}, {"dparams": dparams}, probes)


def _siglip(
    inputs: dict[str, Tree], attrs: Mapping[str, Any], cotangents: Mapping[str, Array]
) -> Answer:
    images, tokens, params = (inputs[name] for name in ("images", "tokens", "params"))
    config = model_config(params, images, tokens, attrs)
    zimg, image_res = encode_image_fwd(params, images, config)
    ztxt, text_res = encode_text_fwd(params, tokens, config)
    loss, loss_res = sigmoid_loss_fwd(zimg, ztxt, params["t_prime"], params["b"])
    out = {"loss": loss, "zimg": zimg, "ztxt": ztxt}
    if not cotangents:
        return answer(out)
    dzimg, dztxt, dt_prime, db = sigmoid_loss_bwd(loss_res, cotangents["loss"])
    dparams = {
        "img": encode_image_bwd(image_res, dzimg, config)[1],
        "txt": encode_text_bwd(text_res, dztxt, config),
        "t_prime": dt_prime,
        "b": db,
    }
    probes = {
        **_under("img", encoders.image_probes(images, params["img"], config.image)),
        **_under("txt", encoders.text_probes(tokens, params["txt"], config.text)),
    }
    return answer(out, {"dparams": dparams}, probes)


def _under(prefix: str, probes: dict[str, Array]) -> dict[str, Array]:
    return {f"{prefix}/{name}": value for name, value in probes.items()}


def model_config(
    params: Tree, images: Array, tokens: Array, attrs: Mapping[str, Any]
) -> sr.SiglipConfig:
    """The configuration that the parameters and the attributes of `siglip` stand for."""
    return sr.SiglipConfig(
        image=image_config(params["img"], images, attrs["image_heads"], attrs["eps"]),
        text=text_config(params["txt"], tokens, attrs["text_heads"], attrs["eps"]),
        l2_norm_eps=attrs["norm_eps"],
    )


def image_config(params: Tree, images: Array, num_heads: int, eps: float) -> sr.ImageConfig:
    """The configuration of an image tower, with the size of the images it is given.

    Raises ValueError if the images are not square or do not have the tower's number of patches.
    """
    _, height, width, channels = images.shape
    rows, d = params["patch_embed"]["kernel"].shape
    config = sr.ImageConfig(
        image_size=height,
        patch_size=math.isqrt(rows // channels),
        width=d,
        depth=len(params["block"]),
        mlp_dim=params["map_head"]["mlp"]["dense_0"]["kernel"].shape[1],
        num_heads=num_heads,
        layer_norm_eps=eps,
    )
    wanted = params["pos_embedding"].shape[0]
    if height != width or config.num_patches != wanted:
        raise ValueError(
            f"images must be square with {wanted} patches, got the shape {tuple(images.shape)}, "
            f"which has {config.num_patches}"
        )
    return config


def text_config(params: Tree, tokens: Array, num_heads: int, eps: float) -> sr.TextConfig:
    """The configuration of a text tower.

    Raises ValueError if the tokens do not have the tower's context length.
    """
    vocab_size, d = params["embed"]["embedding"].shape
    length = params["pos_embedding"].shape[0]
    if tokens.shape[1] != length:
        raise ValueError(f"tokens must have the shape (n, {length}), got {tuple(tokens.shape)}")
    return sr.TextConfig(
        vocab_size=vocab_size,
        context_length=length,
        width=d,
        depth=len(params["block"]),
        mlp_dim=params["block"]["00"]["mlp"]["dense_0"]["kernel"].shape[1],
        num_heads=num_heads,
        out_dim=params["head"]["kernel"].shape[1] if "head" in params else None,
        layer_norm_eps=eps,
    )


def _any_text_config(width: int) -> sr.TextConfig:
    """A text tower to go with an image tower that runs alone."""
    return sr.TextConfig(
        vocab_size=1, context_length=1, width=width, depth=1, mlp_dim=1, num_heads=1, out_dim=None
    )


def _any_image_config(width: int) -> sr.ImageConfig:
    """An image tower to go with a text tower that runs alone."""
    return sr.ImageConfig(image_size=1, patch_size=1, width=width, depth=1, mlp_dim=1, num_heads=1)


IMAGE_OPERATIONS = (
    Operation("block", ("x", "params"), ("out",), _block, ("x", "params"), ("num_heads", "eps")),
    Operation(
        "map_head",
        ("tokens", "params"),
        ("out",),
        _map_head,
        ("tokens", "params"),
        ("num_heads", "eps"),
    ),
    Operation(
        "encode_image", ("images", "params"), ("zimg",), _encode_image, ("params",), TOWER_ATTRS
    ),
)
TEXT_OPERATIONS = (
    Operation(
        "encode_text", ("tokens", "params"), ("ztxt",), _encode_text, ("params",), TOWER_ATTRS
    ),
)
MODEL_OPERATIONS = (
    Operation(
        "siglip",
        ("images", "tokens", "params"),
        ("loss", "zimg", "ztxt"),
        _siglip,
        ("params",),
        MODEL_ATTRS,
    ),
)
