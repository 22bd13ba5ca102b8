"""All real implementations that are checked: the rows of the table of conformance."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from siglip_spec import PROFILES, Report, check_subject
from subjects.core import CORES
from subjects.huggingface import siglip2_model, siglip_model
from subjects.open_clip import open_clip
from subjects.open_clip_ring import RANKS, open_clip_rings
from subjects.plain_jax import plain_jax
from subjects.plain_torch import plain_torch

OPERATIONS_ALONE = ("loss", "primitives", "accuracy")
ALL_BUT_TRAJECTORY = tuple(name for name in PROFILES if name != "trajectory")


@dataclass(frozen=True)
class Row:
    """Subjects that are checked together.

    make
        Builds them; skips the test where a library is missing.
    limit
        What no score may reach.
    needs
        What must be entered meanwhile.
    """

    label: str
    make: Callable[[], list[Any]]
    profiles: tuple[str, ...]
    limit: float = 0.5
    needs: AbstractContextManager[Any] | None = None

    def check(self, profile: str) -> list[Report]:
        """Their reports on one profile."""
        subjects = self.make()
        with self.needs or nullcontext():
            return [check_subject(subject, profile) for subject in subjects]


def _one(make: Callable[[str], Any], dtype: str) -> Callable[[], list[Any]]:
    return lambda: [make(dtype)]


def _rows(
    label: str, make: Callable[[str], Any], dtypes: str, profiles: tuple[str, ...], **settings: Any
) -> list[Row]:
    return [
        Row(f"{label}-{dtype}", _one(make, dtype), profiles, **settings) for dtype in dtypes.split()
    ]


def _core(subject: Any) -> Row:
    # Ten unrolled steps take JAX half a minute to compile, so it does so for one dtype.
    long = subject.module == "jax" and subject.dtype != "float32"
    profiles = ALL_BUT_TRAJECTORY if long else PROFILES
    return Row(f"{subject.label}-{subject.dtype}", lambda: [subject], profiles)


ROWS = (
    *(_core(subject) for subject in CORES),
    *_rows("plain-torch", plain_torch, "float64 float32 bfloat16 float16", OPERATIONS_ALONE),
    # The derivative of jax.nn.log_sigmoid is exp(x - log(1 + exp x)), whose relative error grows
    # with |x| and reaches 0.8 in float64 at t = 112; and a division by 127.5 that is compiled to a
    # product scores 0.5.
    *_rows("plain-jax", plain_jax, "float64 float32 bfloat16", OPERATIONS_ALONE, limit=1.0),
    # In float64 all that is normalised fails for want of an eps: the layers are in `image`.
    *_rows("SiglipModel", siglip_model, "float64", ("image",)),
    *_rows("SiglipModel", siglip_model, "float32", ("loss", "image", "text", "model")),
    *_rows("Siglip2Model", siglip2_model, "float32", ("loss", "image", "text", "model")),
    *_rows("open_clip", open_clip, "float64 float32 bfloat16 float16", ("loss", "accuracy")),
    Row(
        "open_clip-gloo",
        lambda: [*open_clip_rings("float64"), *open_clip_rings("float32")],
        ("ring",),
        needs=RANKS,
    ),
)
