"""Cases of the profile `accuracy`: extreme inputs, where a formula that is right may still fail.

They ask for more than agreement at ordinary inputs, and are a claim of their own.
"""

from collections.abc import Iterator

import numpy as np

from siglip_spec.cases.definition import define
from siglip_spec.cases.loss import GRADIENTS, scalars
from siglip_spec.cases.primitives import EPS, NORM_EPS
from siglip_spec.cases.values import INITIAL_T_PRIME, Values, on_grid
from siglip_spec.suites import Case

LARGE = 9984.0
"""The number nearest to 10^4 that is exact in every dtype."""


def accuracy_cases() -> Iterator[Case]:
    """All of them."""
    yield from _tails()
    yield from _losses()
    yield from _rows()


def _tails() -> Iterator[Case]:
    ladder = [20.0, 30.0, 80.0, 88.5, 104.0, 720.0, LARGE]
    x = on_grid(np.asarray([[-value for value in ladder], ladder]))
    for operation in ("softplus", "log_sigmoid"):
        yield define(
            f"accuracy.{operation}/n2-d7/any-magnitude",
            operation,
            "NUM-3 LOSS-4",
            "neither tail overflows, and neither loses its digits",
            {"x": x},
        )
    case_id = "accuracy.gelu_tanh/n3-d7/left-tail"
    yield define(
        case_id,
        "gelu_tanh",
        "ENC-6 GRAD-11 NUM-2",
        "far left, where 1 + tanh cancels and the forms of GELU part",
        {"x": Values(case_id).uniform(-5.0, -3.0, 3, 7)},
    )


def _losses() -> Iterator[Case]:
    case_id = "accuracy.pairwise/n5-m7-d3/strangers"
    values = Values(case_id)
    yield define(
        case_id,
        "pairwise_sigmoid_loss",
        f"NUM-2 LOSS-4 {GRADIENTS}",
        "negatives only, at b = -10: the gradient is small and must keep its digits",
        {
            "zimg": values.unit_rows(5, 3),
            "ztxt": values.unit_rows(7, 3),
            **scalars(INITIAL_T_PRIME, -10.0),
            "labels": -np.ones((5, 7)),
            "weights": np.ones((5, 7)),
        },
        cotangents={"loss": 1.0},
    )
    for name, t_prime, b, comment in (
        ("n7-d5/hard", 9.25, 0.0, "logits up to 10^4 of either sign"),
        ("n7-d5/far", 1.0, -96.0, "b = -96: exp(88) overflows in float32"),
    ):
        case_id = f"accuracy.sigmoid/{name}"
        values = Values(case_id)
        yield define(
            case_id,
            "sigmoid_loss",
            f"LOSS-4 NUM-2 {GRADIENTS}",
            comment,
            {
                "zimg": values.unit_rows(7, 5),
                "ztxt": values.unit_rows(7, 5),
                **scalars(t_prime, b),
            },
            cotangents={"loss": 1.0},
        )
    case_id = "accuracy.softmax_loss/n7-d5/hard"
    values = Values(case_id)
    yield define(
        case_id,
        "softmax_loss",
        "LOSS-7 NUM-6 GRAD-1 GRAD-2 GRAD-3",
        "logits in the thousands",
        {
            "zimg": values.unit_rows(7, 5),
            "ztxt": values.unit_rows(7, 5),
            "t_prime": on_grid(8.0),
        },
        cotangents={"loss": 1.0},
    )


def _rows() -> Iterator[Case]:
    case_id = "accuracy.softmax/n3-d5/large"
    values = Values(case_id)
    yield define(
        case_id,
        "softmax",
        "NUM-6 ENC-14",
        "scores around 1000 that differ by a few units",
        {"x": on_grid(1024.0 + 8.0 * values.integers(3, 3, 5))},
    )
    case_id = "accuracy.layer_norm/n4-d6/large-mean"
    values = Values(case_id)
    yield define(
        case_id,
        "layer_norm",
        "NUM-4 ENC-4",
        "a mean of 100 deviations: E[x²] - E[x]² cancels",
        {"x": on_grid(4096.0 + 32.0 * values.integers(4, 4, 6)), **values.norm(6)},
        attrs={"eps": EPS},
    )
    case_id = "accuracy.layer_norm/n3-d7/constant-rows"
    values = Values(case_id)
    yield define(
        case_id,
        "layer_norm",
        "NUM-4 ENC-4",
        "rows without any deviation give the bias",
        {"x": np.broadcast_to(values.normal(3, 1), (3, 7)).copy(), **values.norm(7)},
        attrs={"eps": 2.0**-6},
    )
    case_id = "accuracy.l2_normalize/n4-d6/short"
    yield define(
        case_id,
        "l2_normalize",
        "ENC-12 GRAD-8 NUM-5",
        "rows of norm 10^-4, where eps = 10^-8 shows",
        {"x": Values(case_id).normal(4, 6, scale=2.0**-12)},
        attrs={"eps": NORM_EPS},
    )
    case_id = "accuracy.l2_normalize/n4-d5/zero-row"
    x = Values(case_id).normal(4, 5)
    x[2] = 0.0
    yield define(
        case_id,
        "l2_normalize",
        "NUM-5 GRAD-8",
        "a row of zeros stays zero, with the gradient dout / eps",
        {"x": x},
        attrs={"eps": 2.0**-5},
    )
