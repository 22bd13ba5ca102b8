"""Cases of the profile `primitives`."""

from collections.abc import Iterator

import numpy as np

from siglip_spec.cases.definition import define
from siglip_spec.cases.values import Values, on_grid
from siglip_spec.suites import Case

EPS = 1e-6
NORM_EPS = 1e-8


def primitive_cases() -> Iterator[Case]:
    """All of them."""
    yield from _linear()
    yield from _elementwise()
    yield from _norms()
    yield from _attention()
    yield from _inputs()


def _linear() -> Iterator[Case]:
    for name, shape, d_in, d_out in (("n6-in5-out7", (6,), 5, 7), ("n2-l3-in7-out5", (2, 3), 7, 5)):
        case_id = f"primitives.dense/{name}/ordinary"
        values = Values(case_id)
        yield define(
            case_id,
            "dense",
            "ENC-13 GRAD-6",
            "a kernel that is not square, used from the left",
            {"x": values.normal(*shape, d_in), **values.dense(d_in, d_out)},
        )
    case_id = "primitives.scaled_cosine/n5-m7-d3/ordinary"
    values = Values(case_id)
    yield define(
        case_id,
        "scaled_cosine",
        "LOSS-1 GRAD-1 GRAD-2 GRAD-3 GRAD-5",
        "exp(t') times the inner products",
        {
            "zimg": values.unit_rows(5, 3),
            "ztxt": values.unit_rows(7, 3),
            "t_prime": on_grid(1.25),
        },
    )


def _elementwise() -> Iterator[Case]:
    for operation, low, high, clauses, comment in (
        ("gelu_tanh", -2.0, 5.0, "ENC-6 GRAD-11", "both branches; the far tail is in `accuracy`"),
        ("softplus", -8.0, 8.0, "LOSS-4", "both branches"),
        ("log_sigmoid", -8.0, 8.0, "LOSS-4", "both branches"),
    ):
        case_id = f"primitives.{operation}/n5-d7/ordinary"
        yield define(
            case_id,
            operation,
            clauses,
            comment,
            {"x": Values(case_id).uniform(low, high, 5, 7)},
        )
    for name, shape, scale, comment in (
        ("n5-d7/ordinary", (5, 7), 2.0, "rows that sum to 1"),
        ("n2-l3-d5/three-axes", (2, 3, 5), 1.0, "the last of three axes"),
    ):
        case_id = f"primitives.softmax/{name}"
        yield define(
            case_id,
            "softmax",
            "ENC-14 GRAD-10",
            comment,
            {"x": Values(case_id).normal(*shape, scale=scale)},
        )


def _norms() -> Iterator[Case]:
    for name, shape, scale, mean, comment in (
        ("n4-d6/ordinary", (4, 6), 1.0, 0.5, "rows of deviation 1"),
        ("n2-l3-d7/three-axes", (2, 3, 7), 1.0, 0.0, "statistics over the last axis only"),
        ("n5-d3/narrow", (5, 3), 2.0, -1.0, "few columns: dividing by d - 1 shows"),
        ("n5-d8/small", (5, 8), 2.0**-8, 0.0, "a variance near eps: its value and place show"),
    ):
        case_id = f"primitives.layer_norm/{name}"
        values = Values(case_id)
        yield define(
            case_id,
            "layer_norm",
            "ENC-4 GRAD-9",
            comment,
            {"x": values.normal(*shape, scale=scale, mean=mean), **values.norm(shape[-1])},
            attrs={"eps": EPS},
        )
    for name, shape, scale, eps, comment in (
        (
            "n2-l3-d6/three-axes",
            (2, 3, 6),
            1.0,
            NORM_EPS,
            "rows of ordinary length; norms over the last axis only",
        ),
        (
            "n5-d3/eps-shows",
            (5, 3),
            0.125,
            2.0**-4,
            "an eps of the size of the norms shows where it stands",
        ),
    ):
        case_id = f"primitives.l2_normalize/{name}"
        yield define(
            case_id,
            "l2_normalize",
            "ENC-12 GRAD-8",
            comment,
            {"x": Values(case_id).normal(*shape, scale=scale)},
            attrs={"eps": eps},
        )


def _attention() -> Iterator[Case]:
    case_id = "primitives.dot_product_attention/n2-h3-l5-m4-k6/ordinary"
    values = Values(case_id)
    yield define(
        case_id,
        "dot_product_attention",
        "ENC-5 GRAD-10",
        "more queries than keys; scores of several units",
        {
            "query": values.normal(2, 3, 5, 6, scale=1.5),
            "key": values.normal(2, 3, 4, 6, scale=1.5),
            "value": values.normal(2, 3, 4, 6),
        },
    )
    case_id = "primitives.multi_head_attention/n2-l5-m4-h3-d6/ordinary"
    values = Values(case_id)
    yield define(
        case_id,
        "multi_head_attention",
        "ENC-5 GRAD-6 GRAD-10",
        "three heads of size 2, side by side in the width",
        {
            "x": values.normal(2, 5, 6),
            "y": values.normal(2, 4, 6),
            "params": values.attention(6),
        },
        attrs={"num_heads": 3},
    )


def _inputs() -> Iterator[Case]:
    for name, n, height, width, p, d, comment in (
        (
            "n2-8x12-p4-d5/oblong",
            2,
            8,
            12,
            4,
            5,
            "rows of patches first; pixels row, column, colour",
        ),
        ("n4-7x11-p2-d5/leftover", 4, 7, 11, 2, 5, "a row and a column of pixels fill no patch"),
    ):
        case_id = f"primitives.patch_embed/{name}"
        values = Values(case_id)
        yield define(
            case_id,
            "patch_embed",
            "ENC-2 GRAD-6",
            comment,
            {"images": values.uniform(-1, 1, n, height, width, 3), **values.dense(p * p * 3, d)},
        )
    case_id = "primitives.embed/n3-l4-v7-d5/repeated"
    values = Values(case_id)
    tokens = values.integers(7, 3, 4)
    tokens[0, :2] = tokens[2, 3] = 6
    yield define(
        case_id,
        "embed",
        "ENC-15 GRAD-7",
        "token 6 stands in three places, and some tokens nowhere",
        {"tokens": tokens, "embedding": values.normal(7, 5)},
    )
    case_id = "primitives.normalize_pixels/n2-3x4/colours"
    pixels = Values(case_id).integers(256, 2, 3, 4, 3)
    pixels[0, 0, 0], pixels[0, 0, 1] = (0, 128, 255), (255, 0, 1)
    yield define(
        case_id,
        "normalize_pixels",
        "ENC-1",
        "bytes to [-1, 1], the colours in their order",
        {"pixels": np.asarray(pixels)},
    )
