"""Cases of the profile `ring`: shards of a batch on the ranks of a ring."""

from collections.abc import Iterator

from siglip_ref.types import Tree
from siglip_spec.cases.definition import define
from siglip_spec.cases.loss import GRADIENTS, scalars
from siglip_spec.cases.values import Values, on_grid
from siglip_spec.suites import Case

SHARDS = {
    "w1-d5/alone": ((6,), "one rank: the plain loss"),
    "w2-d5/uneven": ((3, 4), "two ranks, where left is right"),
    "w3-d5/even": ((2, 2, 2), "an odd ring of equal shards"),
    "w3-d4/uneven": ((5, 1, 2), "an odd ring of unequal shards"),
    "w4-d5/even": ((2, 2, 2, 2), "an even ring of equal shards"),
    "w4-d3/uneven": ((2, 4, 1, 3), "an even ring of unequal shards"),
    "w5-d3/ones": ((1, 1, 1, 1, 1), "one pair a rank: all negatives are elsewhere"),
}


PARTED = "w3-d5/texts-elsewhere"
"""A case where image i and text i are on different ranks: only the global index pairs them."""


def ring_cases() -> Iterator[Case]:
    """Sigmoid and softmax on a ring, and the clipping of a gradient that is spread over ranks."""
    for name, (counts, comment) in SHARDS.items():
        d = int(name.split("/")[0].split("-d")[1])
        case_id = f"ring.sigmoid/{name}"
        yield define(
            case_id,
            "ring_sigmoid_loss",
            f"RING-1 RING-2 RING-3 RING-4 RING-5 LOSS-3 {GRADIENTS}",
            comment,
            {**_shards(Values(case_id), counts, d), **scalars(1.5, -2.0)},
            cotangents={"loss": 1.0},
        )
    case_id = f"ring.sigmoid/{PARTED}"
    values = Values(case_id)
    yield define(
        case_id,
        "ring_sigmoid_loss",
        f"RING-1 RING-2 RING-3 RING-4 RING-5 LOSS-3 {GRADIENTS}",
        "texts sharded otherwise than images: some positives are on other ranks",
        {
            "zimg": _shards(values, (3, 1, 2), 5)["zimg"],
            "ztxt": _shards(values, (2, 2, 2), 5)["ztxt"],
            **scalars(1.5, -2.0),
        },
        cotangents={"loss": 1.0},
    )
    for name in ("w1-d5/alone", "w2-d5/uneven", "w3-d4/uneven", "w4-d5/even"):
        counts, comment = SHARDS[name]
        d = int(name.split("/")[0].split("-d")[1])
        case_id = f"ring.softmax/{name}"
        yield define(
            case_id,
            "ring_softmax_loss",
            "RING-1 RING-2 RING-3 RING-6 LOSS-7 GRAD-1 GRAD-2 GRAD-3",
            comment,
            {**_shards(Values(case_id), counts, d), "t_prime": on_grid(1.5)},
            cotangents={"loss": 1.0},
        )
    for name, scale, comment in (
        ("w3/clipped", 1.0, "the norm of the mean is above the limit"),
        ("w3/short", 0.0625, "the norm of the mean is below the limit: nothing is clipped"),
        ("w3/parted", 0.375, "the ranks' own norms are above the limit, that of their mean is not"),
    ):
        case_id = f"ring.clip/{name}"
        values = Values(case_id)
        shapes = {"kernel": values.normal(3, 4), "bias": values.normal(4)}
        yield define(
            case_id,
            "clip_mean_gradient",
            "TRAIN-5",
            comment,
            {"grads": {str(rank): values.like(shapes, scale) for rank in range(3)}},
            attrs={"max_norm": 1.0},
        )


def _shards(values: Values, counts: tuple[int, ...], d: int) -> dict[str, Tree]:
    return {
        name: {str(rank): values.unit_rows(count, d) for rank, count in enumerate(counts)}
        for name in ("zimg", "ztxt")
    }
