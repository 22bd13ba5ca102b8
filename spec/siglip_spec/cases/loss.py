"""Cases of the profile `loss`."""

from collections.abc import Iterator

import numpy as np

from siglip_ref.types import Tree
from siglip_spec.cases.definition import define
from siglip_spec.cases.values import INITIAL_T_PRIME, Values, on_grid
from siglip_spec.suites import Case

VALUE = "LOSS-1 LOSS-2 LOSS-3"
GRADIENTS = "GRAD-1 GRAD-2 GRAD-3 GRAD-4 GRAD-5"


def scalars(t_prime: float, b: float) -> dict[str, Tree]:
    """t' and b on the grid."""
    return {"t_prime": on_grid(t_prime), "b": on_grid(b)}


def loss_cases() -> Iterator[Case]:
    """All of them."""
    yield from _sigmoid()
    yield from _pairwise()
    yield from _tiled()
    yield from _softmax()
    yield define(
        "loss.initial/scalars",
        "initial_scalars",
        "LOSS-8",
        "t' = log 10 and b = -10 at the start of training",
        {},
    )


def _sigmoid() -> Iterator[Case]:
    for name, n, d, t_prime, b, dloss, clauses, comment in (
        ("n7-d5/init-bias", 7, 5, INITIAL_T_PRIME, -10.0, 1.0, "", "t' = log 10, b = -10"),
        ("n7-d3/mild", 7, 3, 0.5, -1.5, 1.0, "", "a bias and a temperature of ordinary size"),
        ("n6-d5/no-bias", 6, 5, 1.0, 0.0, 1.0, "", "b = 0: its gradient is not"),
        ("n5-d7/positive-bias", 5, 7, 0.75, 2.5, 1.0, "", "b is added, whatever its sign"),
        ("n1-d3/single", 1, 3, 1.5, -2.0, 1.0, "", "one pair: no negatives, division by 1"),
        ("n2-d3/two", 2, 3, 1.5, -2.0, 1.0, "", "the smallest batch with negatives"),
        ("n5-d11/cotangent", 5, 11, 1.25, -3.0, 2.5, "", "the loss is used with a factor of 2.5"),
        (
            "n11-d13/hot",
            11,
            13,
            4.71875,
            -12.75,
            1.0,
            "LOSS-9",
            "t = 112, as released models have: it must not be clamped to 100",
        ),
        ("n23-d17/batch", 23, 17, INITIAL_T_PRIME, -3.0, 1.0, "", "a batch with b near its prior"),
    ):
        case_id = f"loss.sigmoid/{name}"
        values = Values(case_id)
        inputs = {"zimg": values.unit_rows(n, d), "ztxt": values.unit_rows(n, d)}
        yield define(
            case_id,
            "sigmoid_loss",
            f"{VALUE} {GRADIENTS} {clauses}",
            comment,
            {**inputs, **scalars(t_prime, b)},
            cotangents={"loss": dloss},
        )
    case_id = "loss.sigmoid/n6-d4/duplicates"
    values = Values(case_id)
    zimg, ztxt = values.unit_rows(6, 4), values.unit_rows(6, 4)
    ztxt[4] = ztxt[1]
    yield define(
        case_id,
        "sigmoid_loss",
        f"{VALUE} {GRADIENTS}",
        "texts 1 and 4 are equal, and still negatives of each other's images",
        {"zimg": zimg, "ztxt": ztxt, **scalars(1.0, -2.0)},
        cotangents={"loss": 1.0},
    )
    for name, m, d, comment in (
        ("n7-d5/other-width", 7, 4, "texts of another width than the images"),
        ("n7-d5/other-count", 6, 5, "six texts for seven images"),
    ):
        case_id = f"loss.sigmoid/{name}"
        values = Values(case_id)
        inputs = {"zimg": values.unit_rows(7, 5), "ztxt": values.unit_rows(m, d)}
        yield define(
            case_id,
            "sigmoid_loss",
            "LOSS-10",
            comment,
            {**inputs, **scalars(1.0, -2.0)},
            cotangents={"loss": 1.0},
            rejected="shape",
        )


def _pairwise() -> Iterator[Case]:
    hard, soft = (-1.0, -1.0, 1.0), (-1.0, -0.75, -0.25, 0.5, 1.0)
    one, masked, mixed = (1.0,), (0.0, 1.0), (0.5, 1.0, 3.0)
    for name, n, m, d, labels, weights, b, comment in (
        ("n5-m7-d3/several-positives", 5, 7, 3, hard, one, -2.0, "several texts match an image"),
        ("n7-m4-d3/fewer-texts", 7, 4, 3, hard, one, -2.0, "more images than texts: divide by n"),
        ("n6-m5-d4/soft", 6, 5, 4, soft, one, -1.0, "labels between -1 and 1"),
        ("n5-m6-d4/weights", 5, 6, 4, hard, mixed, -1.0, "pairs count differently"),
        ("n4-m7-d5/mask", 4, 7, 5, soft, masked, -1.0, "pairs of weight 0 are left out"),
        ("n5-m4-d6/strangers", 5, 4, 6, (-1.0,), one, -4.0, "a block without any positive"),
    ):
        case_id = f"loss.pairwise/{name}"
        values = Values(case_id)
        yield define(
            case_id,
            "pairwise_sigmoid_loss",
            f"LOSS-5 LOSS-3 {GRADIENTS}",
            comment,
            {
                "zimg": values.unit_rows(n, d),
                "ztxt": values.unit_rows(m, d),
                **scalars(1.5, b),
                "labels": values.choice(labels, n, m),
                "weights": values.choice(weights, n, m),
            },
            cotangents={"loss": 1.0},
        )
    case_id = "loss.pairwise/n5-m7-d3/labels-transposed"
    values = Values(case_id)
    yield define(
        case_id,
        "pairwise_sigmoid_loss",
        "LOSS-10",
        "labels of shape (m, n)",
        {
            "zimg": values.unit_rows(5, 3),
            "ztxt": values.unit_rows(7, 3),
            **scalars(1.5, -2.0),
            "labels": -np.ones((7, 5)),
            "weights": np.ones((7, 5)),
        },
        cotangents={"loss": 1.0},
        rejected="shape",
    )


def _tiled() -> Iterator[Case]:
    for name, n, tile, comment in (
        ("n7-d5/tile-3", 7, 3, "the last tile is smaller"),
        ("n6-d5/tile-1", 6, 1, "a tile for every pair"),
        ("n8-d5/tile-4", 8, 4, "tiles that fit"),
        ("n5-d3/tile-16", 5, 16, "a tile larger than the batch"),
    ):
        case_id = f"loss.tiled/{name}"
        values = Values(case_id)
        d = int(name.split("/")[0].split("-d")[1])
        yield define(
            case_id,
            "tiled_sigmoid_loss",
            f"LOSS-6 {GRADIENTS}",
            comment,
            {
                "zimg": values.unit_rows(n, d),
                "ztxt": values.unit_rows(n, d),
                **scalars(1.5, -2.0),
            },
            attrs={"tile": tile},
            cotangents={"loss": 1.0},
        )


def _softmax() -> Iterator[Case]:
    for name, n, d, t_prime, dloss, comment in (
        ("n7-d5/start", 7, 5, 2.65625, 1.0, "CLIP's initial t = 1/0.07, to the grid"),
        ("n6-d3/cold", 6, 3, 0.25, 1.0, "a low temperature"),
        ("n5-d7/cotangent", 5, 7, 1.5, 2.5, "the loss is used with a factor of 2.5"),
        ("n1-d3/single", 1, 3, 1.0, 1.0, "one pair: the loss and its gradients are 0"),
    ):
        case_id = f"loss.softmax/{name}"
        values = Values(case_id)
        yield define(
            case_id,
            "softmax_loss",
            "LOSS-7 GRAD-1 GRAD-2 GRAD-3",
            comment,
            {
                "zimg": values.unit_rows(n, d),
                "ztxt": values.unit_rows(n, d),
                "t_prime": on_grid(t_prime),
            },
            cotangents={"loss": dloss},
        )
