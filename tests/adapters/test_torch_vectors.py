"""Every face of siglip_torch conforms, by the vectors of the kit."""

import pytest

from siglip_spec import check_subject
from subjects import torch_adapter

DTYPES = ("float64", "float32", "bfloat16", "float16")
FACES = [
    *((face, "loss") for face in (torch_adapter.tile_loop, torch_adapter.functions)),
    *((face, "accuracy") for face in (torch_adapter.tile_loop, torch_adapter.functions)),
    (torch_adapter.module, "loss"),
    (torch_adapter.module, "accuracy"),
    (torch_adapter.model, "model"),
]

pytestmark = pytest.mark.usefixtures("unchecked")


def assert_conforms(report):
    failures = [r for r in report.records if r.status == "failed"]
    assert report.ok, [f"{r.check}: {r.message} {r.findings}" for r in failures]
    assert report.counts()["expected"] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("face", "profile"), FACES, ids=[f"{face.__name__}-{profile}" for face, profile in FACES]
)
def test_a_face_conforms_in_every_dtype(face, profile, dtype):
    assert_conforms(check_subject(face(dtype), profile))


@pytest.mark.slow
def test_the_module_conforms_on_gloo_ranks_with_even_and_uneven_shards():
    with torch_adapter.RANKS:
        assert_conforms(check_subject(torch_adapter.ring("float64"), "ring"))
        assert_conforms(check_subject(torch_adapter.ring("float32"), "ring"))
