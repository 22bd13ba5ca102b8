"""Cases of the profiles `image`, `text` and `model`."""

from collections.abc import Iterator

import numpy as np

from siglip_ref.types import Tree
from siglip_spec.cases.definition import define
from siglip_spec.cases.primitives import EPS, NORM_EPS
from siglip_spec.cases.values import Values, on_grid
from siglip_spec.suites import Case

PAD = 1
"""The id that fills up a text, as in the tokenizer of the first models."""


def image_cases() -> Iterator[Case]:
    """Block, pooling head and image tower."""
    case_id = "image.block/n2-l5-h3-d12-f7/ordinary"
    values = Values(case_id)
    yield define(
        case_id,
        "block",
        "ENC-7 ENC-4 ENC-5 ENC-6 GRAD-6",
        "three heads of size 4",
        {"x": values.normal(2, 5, 12), "params": values.block(12, 7)},
        attrs={"num_heads": 3, "eps": EPS},
    )
    case_id = "image.map_head/n2-l5-h3-d12-f7/ordinary"
    values = Values(case_id)
    yield define(
        case_id,
        "map_head",
        "ENC-9 ENC-6 GRAD-6",
        "one probe for both images, not added to what it finds",
        {"tokens": values.normal(2, 5, 12), "params": values.map_head(12, 7)},
        attrs={"num_heads": 3, "eps": EPS},
    )
    for name, size, comment in (
        ("n3-s12-p5-d14/leftover", 12, "two rows and columns of pixels fill no patch; two blocks"),
        ("n3-s10-p5-d14/whole", 10, "whole patches; two blocks"),
    ):
        case_id = f"image.tower/{name}"
        values = Values(case_id)
        yield define(
            case_id,
            "encode_image",
            "ENC-2 ENC-3 ENC-8 ENC-9 ENC-12 ENC-16 GRAD-6",
            comment,
            {
                "images": values.uniform(-1, 1, 3, size, size, 3),
                "params": values.image_tower(patch=5, patches=4, d=14, f=9, depth=2),
            },
            attrs={"num_heads": 7, "eps": EPS, "norm_eps": NORM_EPS},
        )
    case_id = "image.tower/n3-s17-p5-d14/other-size"
    values = Values(case_id)
    yield define(
        case_id,
        "encode_image",
        "ENC-17",
        "images of nine patches for a tower of four positions",
        {
            "images": values.uniform(-1, 1, 3, 17, 17, 3),
            "params": values.image_tower(patch=5, patches=4, d=14, f=9, depth=1),
        },
        attrs={"num_heads": 7, "eps": EPS, "norm_eps": NORM_EPS},
        cotangents={"zimg": values.normal(3, 14)},
        rejected="shape",
    )


def padded_tokens(values: Values, n: int, length: int, v: int) -> np.ndarray:
    """Texts of all lengths, filled up with `PAD`; the last one fills the context."""
    tokens = 2 + values.integers(v - 2, n, length)
    for row in range(n - 1):
        tokens[row, 1 + row % (length - 1) :] = PAD
    return tokens


def text_cases() -> Iterator[Case]:
    """The text tower, with and without a head."""
    for name, out, comment in (
        ("n4-l5-v13-d12/head", 8, "pads are attended, and the last position is pooled"),
        ("n4-l5-v13-d12/no-head", None, "the last position itself is the embedding"),
    ):
        case_id = f"text.tower/{name}"
        values = Values(case_id)
        yield define(
            case_id,
            "encode_text",
            "ENC-3 ENC-8 ENC-10 ENC-11 ENC-12 ENC-15 GRAD-6 GRAD-7",
            comment,
            {
                "tokens": padded_tokens(values, 4, 5, 13),
                "params": values.text_tower(v=13, length=5, d=12, f=7, depth=2, out=out),
            },
            attrs={"num_heads": 3, "eps": EPS, "norm_eps": NORM_EPS},
        )
    case_id = "text.tower/n4-l4-v13-d12/unpadded"
    values = Values(case_id)
    yield define(
        case_id,
        "encode_text",
        "ENC-17",
        "texts that are not padded to the context length",
        {
            "tokens": 2 + values.integers(11, 4, 4),
            "params": values.text_tower(v=13, length=5, d=12, f=7, depth=1, out=8),
        },
        attrs={"num_heads": 3, "eps": EPS, "norm_eps": NORM_EPS},
        cotangents={"ztxt": values.normal(4, 8)},
        rejected="shape",
    )


def model_cases() -> Iterator[Case]:
    """Both towers and the loss."""
    for name, t_prime, b, comment in (
        ("n5/init-bias", 2.296875, -10.0, "every parameter's gradient, at the initial t' and b"),
        ("n5/mild", 1.0, -1.5, "every parameter's gradient, with negatives that count"),
    ):
        case_id = f"model.siglip/{name}"
        values = Values(case_id)
        yield define(
            case_id,
            "siglip",
            "ENC-16 LOSS-1 LOSS-3 GRAD-6",
            comment,
            {
                "images": values.uniform(-1, 1, 5, 9, 9, 3),
                "tokens": padded_tokens(values, 5, 6, 11),
                "params": small_model(values, t_prime, b),
            },
            attrs={"image_heads": 2, "text_heads": 3, "eps": EPS, "norm_eps": NORM_EPS},
            cotangents={"loss": 1.0},
        )


def small_model(values: Values, t_prime: float, b: float) -> Tree:
    """Two towers of different widths and depths."""
    return {
        "img": values.image_tower(patch=4, patches=4, d=14, f=10, depth=1),
        "txt": values.text_tower(v=11, length=6, d=9, f=8, depth=2, out=14),
        "t_prime": on_grid(t_prime),
        "b": on_grid(b),
    }
