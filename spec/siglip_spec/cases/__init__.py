"""The definitions of all cases; `siglip_spec.generate` answers them and writes the vectors."""

from collections.abc import Callable, Iterator, Mapping

from siglip_spec.cases.accuracy import accuracy_cases
from siglip_spec.cases.loss import loss_cases
from siglip_spec.cases.primitives import primitive_cases
from siglip_spec.cases.ring import ring_cases
from siglip_spec.cases.towers import image_cases, model_cases, text_cases
from siglip_spec.cases.trajectory import trajectory_cases
from siglip_spec.suites import Case

DEFINITIONS: Mapping[str, Callable[[], Iterator[Case]]] = {
    "loss": loss_cases,
    "primitives": primitive_cases,
    "image": image_cases,
    "text": text_cases,
    "model": model_cases,
    "ring": ring_cases,
    "trajectory": trajectory_cases,
    "accuracy": accuracy_cases,
}

__all__ = ["DEFINITIONS"]
