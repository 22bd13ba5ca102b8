"""The bindings of NCCL and cuBLAS are what the stand-in takes them for."""

import pytest

import cupy_stand_in.cublas
import cupy_stand_in.nccl
from siglip_cupy.gemm import cublas
from siglip_cupy.nccl import nccl


@pytest.mark.parametrize(
    ("stand_in", "loaded"),
    [(cupy_stand_in.cublas, cublas), (cupy_stand_in.nccl, nccl)],
    ids=["cublas", "nccl"],
)
def test_the_stand_in_has_the_signatures_and_the_numbers_of_the_bindings(stand_in, loaded):
    real = loaded()
    for path, line in stand_in.SIGNATURES.items():
        owner, _, method = path.rpartition(".")
        function = getattr(getattr(real, owner) if owner else real, method)
        assert function.__doc__.splitlines()[0] == line
    for public in stand_in.__all__:
        value = getattr(stand_in, public)
        if isinstance(value, int):
            assert getattr(real, public) == value, public
