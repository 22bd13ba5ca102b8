"""One core for every array library: the same numbers, on the inputs' device, in their dtype.

`Backend.call` asserts library, device, dtype and unwritten inputs for all that comes back, the
residuals included.
"""

import numpy as np
import pytest

from backends import BACKENDS, NUMPY, library, map_arrays
from derivatives import cotangent, run
from siglip_ref.tree import flatten
from strategies import OPERATIONS

PARTS = [name for name in OPERATIONS if name not in ("encoder", "image", "text")]
"""The towers run on every backend in test_model.py."""

ULPS = 64
"""Of the largest element, in units of rounding of its dtype (2^-11, 2^-24, 2^-53): a block chains
some thirty operations, each good to a unit or two. The most that was seen is 15."""


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", PARTS)
def test_outputs_and_gradients_are_those_of_numpy_in_float64(name, backend, dtype):
    # The inputs and the cotangent are float32 numbers, so that both compute the same thing.
    case = OPERATIONS[name].example()
    case = case._replace(inputs=map_arrays(lambda x: rounded(x, np.float32), case.inputs))
    dout = rounded(cotangent(case, np.random.default_rng(1)), np.float32)
    want_out, want = run(case, dout)
    out, got = run(case, dout, backend, dtype)
    assert out.dtype == dtype
    assert_near(out, want_out, ULPS, "out")
    gradients = flatten(got)
    for path, wanted in flatten(want).items():
        assert gradients[path].dtype == dtype, path
        # A key bias has the gradient 0 in theory: held to its kernel's.
        scale = flatten(want)[path.replace("key/bias", "key/kernel")]
        assert_near(gradients[path], wanted, ULPS, path, np.max(np.abs(scale)))


@pytest.mark.parametrize("name", PARTS)
def test_float16_goes_in_and_comes_out(name):
    case = OPERATIONS[name].example()
    case = case._replace(inputs=map_arrays(lambda x: rounded(x, np.float16), case.inputs))
    dout = rounded(cotangent(case, np.random.default_rng(1)), np.float16)
    want_out, want = run(case, dout)
    out, gradients = run(case, dout, NUMPY, np.float16)
    # Logits and losses come in float32: near -10 a logit has few digits in 16 bits, and a sum
    # over many pairs does not fit into them.
    wide = name == "scaled_cosine" or name.endswith("loss")
    assert out.dtype == (np.float32 if wide else np.float16)
    assert_near(out, want_out, ULPS, "out")
    for path, gradient in flatten(gradients).items():
        assert gradient.dtype == np.float16, path
        scale = flatten(want)[path.replace("key/bias", "key/kernel")]
        assert_near(gradient, flatten(want)[path], ULPS, path, np.max(np.abs(scale)))


def rounded(x, dtype):
    """The nearest numbers of `dtype`, in float64."""
    return x.astype(dtype).astype(np.float64)


def assert_near(got, want, ulps, path, scale=None):
    """Every element is within `ulps` units of rounding of `scale`, the largest element wanted."""
    assert got.shape == want.shape, path
    assert np.all(np.isfinite(got)), path
    scale = np.max(np.abs(want)) if scale is None else scale
    unit = np.finfo(got.dtype).eps / 2
    error = np.max(np.abs(got.astype(np.float64) - want)) / (unit * scale)
    assert error <= ulps, f"{path}: off by {error:.3g} units of rounding of the largest element"


def test_a_missing_library_is_a_visible_skip(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no_such_library is not installed"):
        library("no_such_library")


def test_a_missing_library_is_a_failure_in_ci(monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no_such_library is not installed"):
        library("no_such_library")


def test_a_function_that_writes_to_its_input_is_caught(backend):
    if backend.jit or backend.module == "jax":
        with pytest.raises(TypeError, match="immutable"):
            backend.call(write, backend.asarray(np.ones(3)))
    elif backend.readonly:
        with pytest.raises(ValueError, match="read-only"):
            backend.call(write, backend.asarray(np.ones(3)))
    else:
        with pytest.raises(AssertionError, match="was written to"):
            backend.call(write, backend.asarray(np.ones(3)))


def write(x):
    x[0] = 2.0
    return x


def test_a_function_that_changes_the_dtype_is_caught():
    with pytest.raises(AssertionError, match="dtype changed"):
        NUMPY.call(lambda x: x.astype(np.float64), NUMPY.asarray(np.ones(3, dtype=np.float32)))


def test_a_function_that_leaves_the_device_is_caught():
    device1 = next(backend for backend in BACKENDS if backend.device is not None)
    device1.require()
    strict = library("array_api_strict")
    with pytest.raises(AssertionError, match="device changed"):
        device1.call(
            lambda x: x.to_device(strict.Device("CPU_DEVICE")), device1.asarray(np.ones(3))
        )
