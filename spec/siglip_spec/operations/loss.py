"""The operations of the profile `loss`: the losses on embeddings, with t' and b."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from siglip_ref.losses import (
    diagonal,
    from_matrix,
    sigmoid_loss_bwd,
    sigmoid_loss_fwd,
    softmax_loss_bwd,
    softmax_loss_fwd,
    tiled_sigmoid_loss,
)
from siglip_ref.losses.pairs import Pairs
from siglip_ref.params import INITIAL_B, INITIAL_T_PRIME
from siglip_ref.precision import cast_like
from siglip_ref.primitives import scaled_cosine_fwd
from siglip_ref.types import Array, Tree
from siglip_spec.operations.operation import Answer, Operation, answer

SCALED = ("zimg", "ztxt", "t_prime")
BIASED = (*SCALED, "b")


def _sigmoid_loss(
    inputs: dict[str, Tree], _: Mapping[str, Any], cotangents: Mapping[str, Array]
) -> Answer:
    if inputs["zimg"].shape[0] != inputs["ztxt"].shape[0]:
        raise ValueError(
            "zimg and ztxt must hold one row for each pair, "
            f"got {inputs['zimg'].shape[0]} and {inputs['ztxt'].shape[0]}"
        )
    return _sigmoid_loss_of(inputs, diagonal, cotangents)


def _pairwise_sigmoid_loss(
    inputs: dict[str, Tree], _: Mapping[str, Any], cotangents: Mapping[str, Array]
) -> Answer:
    zimg, ztxt, labels = (inputs[name] for name in ("zimg", "ztxt", "labels"))
    if tuple(labels.shape) != (zimg.shape[0], ztxt.shape[0]):
        raise ValueError(
            f"labels must have the shape {(zimg.shape[0], ztxt.shape[0])}, "
            f"got {tuple(labels.shape)}"
        )
    return _sigmoid_loss_of(inputs, from_matrix(labels, inputs["weights"]), cotangents)


def _sigmoid_loss_of(
    inputs: dict[str, Tree], pairs: Pairs, cotangents: Mapping[str, Array]
) -> Answer:
    loss, res = sigmoid_loss_fwd(*(inputs[name] for name in BIASED), pairs=pairs)
    if not cotangents:
        return answer({"loss": loss})
    scaled, _ = scaled_cosine_fwd(*(inputs[name] for name in SCALED))
    grads = sigmoid_loss_bwd(res, cotangents["loss"])
    return answer(
        {"loss": loss}, grads._asdict(), {"logits": scaled + cast_like(inputs["b"], scaled)}
    )


def _tiled_sigmoid_loss(
    inputs: dict[str, Tree], attrs: Mapping[str, Any], cotangents: Mapping[str, Array]
) -> Answer:
    loss, grads = tiled_sigmoid_loss(*(inputs[name] for name in BIASED), tile=attrs["tile"])
    if not cotangents:
        return answer({"loss": loss})
    dloss = cotangents["loss"]
    return answer({"loss": loss}, {name: dloss * grad for name, grad in grads._asdict().items()})


def _softmax_loss(
    inputs: dict[str, Tree], _: Mapping[str, Any], cotangents: Mapping[str, Array]
) -> Answer:
    loss, res = softmax_loss_fwd(*(inputs[name] for name in SCALED))
    if not cotangents:
        return answer({"loss": loss})
    return answer({"loss": loss}, softmax_loss_bwd(res, cotangents["loss"])._asdict())


def _initial_scalars(_: dict[str, Tree], __: Mapping[str, Any], ___: Mapping[str, Array]) -> Answer:
    return answer({"t_prime": np.asarray(INITIAL_T_PRIME), "b": np.asarray(INITIAL_B)})


LOSS_OPERATIONS = (
    Operation("sigmoid_loss", BIASED, ("loss",), _sigmoid_loss, BIASED),
    Operation(
        "pairwise_sigmoid_loss",
        (*BIASED, "labels", "weights"),
        ("loss",),
        _pairwise_sigmoid_loss,
        BIASED,
    ),
    Operation(
        "tiled_sigmoid_loss", BIASED, ("loss",), _tiled_sigmoid_loss, BIASED, attrs=("tile",)
    ),
    Operation("softmax_loss", SCALED, ("loss",), _softmax_loss, SCALED),
    Operation("initial_scalars", (), ("t_prime", "b"), _initial_scalars),
)
