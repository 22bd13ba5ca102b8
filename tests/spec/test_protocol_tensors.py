"""The files of arrays that travel between the kit and a subject."""

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol_cases import on_the_grid
from siglip_spec.protocol.tensors import decode, encode

FLOATS = ("float64", "float32", "bfloat16", "float16")


ARRAYS = hnp.arrays(np.float64, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
INTEGERS = hnp.arrays(np.int64, hnp.array_shapes(min_dims=0, max_dims=2, max_side=4))


@given(st.dictionaries(st.text(min_size=1, max_size=8), ARRAYS | INTEGERS, max_size=4))
def test_arrays_come_back_from_a_file_bit_by_bit(tensors):
    tensors.pop("__metadata__", None)
    found = decode(encode(tensors, "float64"), "file")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize(
    ("dtype", "peer"),
    [("float32", np.float32), ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)],
)
@given(ARRAYS)
def test_a_narrow_dtype_rounds_to_nearest_even(dtype, peer, array):
    with np.errstate(over="ignore"):
        single = array.astype(np.float32) if dtype == "bfloat16" else array
        want = single.astype(peer).astype(np.float64)
    found = decode(encode({"x": array}, dtype), "file")["x"]
    np.testing.assert_array_equal(found, want, strict=True)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_file_of_ours_is_read_by_the_safetensors_package(dtype):
    tensors = {"x": on_the_grid(np.linspace(-3, 3, 6)).reshape(2, 3), "ids": np.arange(5)}
    found = dict(safetensors.deserialize(encode(tensors, dtype)))
    tags = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    assert (found["x"]["dtype"], found["x"]["shape"]) == (tags[dtype], [2, 3])
    assert (found["ids"]["dtype"], found["ids"]["shape"]) == ("I64", [5])
    peer = getattr(ml_dtypes, dtype) if dtype == "bfloat16" else np.dtype(dtype)
    assert bytes(found["x"]["data"]) == tensors["x"].astype(peer).tobytes()


def test_a_file_of_the_safetensors_package_is_read_by_us():
    tensors = {"x": np.arange(6.0, dtype=np.float32).reshape(2, 3), "ids": np.arange(3)}
    found = decode(safetensors.numpy.save(tensors, {"made": "elsewhere"}), "file")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "end before its header"),
        ((9).to_bytes(8, "little") + b"{}", "end before its header"),
        ((2).to_bytes(8, "little") + b"{x", "its header is no JSON"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        (encode({"k": np.zeros(3)}, "float32")[:-1], "'k' has the shape .3. of F32, 12 bytes"),
        (encode({"k": np.zeros(3)}, "float32").replace(b"F32", b"F8 "), "'k' must have a dtype of"),
        (encode({"k": np.zeros(3)}, "float32").replace(b"[3]", b"-3 "), "'k' must have a dtype, a"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_key(data, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode(data, "answers.safetensors")
    assert "answers.safetensors" in str(caught.value)
