"""The core on CuPy arrays: every operation, the whole model, a training step."""

import numpy as np
import pytest

import siglip_ref as sr
from backends import leaves, map_arrays
from cupy_cases.numbers import DTYPES, assert_near, rounded
from derivatives import cotangent, run
from siglip_ref.tree import flatten
from strategies import OPERATIONS, random_params
from subjects.cupy import to_device, to_host

PARTS = [name for name in OPERATIONS if name not in ("encoder", "image", "text")]
"""The towers run in the whole model below."""


class OnDevice:
    """CuPy as a backend of tests/backends.py: no call waits for the device."""

    def __init__(self, backend, no_waits):
        self._backend, self._no_waits = backend, no_waits

    def asarray(self, x):
        return self._backend.asarray(np.asarray(x))

    def to_numpy(self, x):
        return self._backend.to_numpy(x)

    def call(self, fn, *args):
        before = map_arrays(lambda x: self.to_numpy(x).tobytes(), args)
        with self._no_waits(copies=True):  # some cases hold tokens in NumPy
            result = fn(*args)
        after = map_arrays(lambda x: self.to_numpy(x).tobytes(), args)
        assert before == after, "an input was written to"
        assert not any(isinstance(x, np.ndarray) for x in leaves(result)), "NumPy came back"
        return result


def assert_numbers_of_numpy(name, dtype, cupy_backend, no_waits):
    """An operation and its gradients, computed in a dtype throughout, against NumPy."""
    case = OPERATIONS[name].example()
    case = case._replace(inputs=rounded(case.inputs, dtype))
    dout = rounded(cotangent(case, np.random.default_rng(1)), dtype)
    want_out, want = run(case, dout)
    out, got = run(case, dout, OnDevice(cupy_backend, no_waits), DTYPES[dtype])
    assert out.dtype == DTYPES[dtype]
    assert_near(out, want_out, dtype, "out")
    flat, gradients = flatten(want), flatten(got)
    for path, wanted in flat.items():
        assert gradients[path].dtype == DTYPES[dtype], path
        # A key bias has the gradient 0 in theory: held to its kernel's.
        scale = flat[path.replace("key/bias", "key/kernel")]
        assert_near(gradients[path], wanted, dtype, path, np.max(np.abs(scale)))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", PARTS)
def test_every_operation_gives_the_numbers_of_numpy(name, dtype, cupy_backend, no_waits):
    assert_numbers_of_numpy(name, dtype, cupy_backend, no_waits)


NARROW_PARTS = (
    "dense layer_norm gelu_tanh l2_normalize patch_embed embed dot_product_attention "
    "multi_head_attention mlp block map_head encoder image text"
)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", NARROW_PARTS.split())
def test_the_towers_run_in_16_bits_and_stay_there(name, dtype, cupy_backend, no_waits):
    assert_numbers_of_numpy(name, dtype, cupy_backend, no_waits)


CONFIG = sr.SiglipConfig(
    image=sr.ImageConfig(image_size=19, patch_size=4, width=12, depth=2, mlp_dim=10, num_heads=3),
    text=sr.TextConfig(
        vocab_size=17, context_length=5, width=8, depth=1, mlp_dim=14, num_heads=2, out_dim=12
    ),
)


def batch(n=4):
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (n, 19, 19, 3))
    return random_params(CONFIG, rng), images, rng.integers(0, 17, (n, 5))


@pytest.mark.parametrize(
    "options",
    [{}, {"tile": 3}, {"microbatch": 2, "remat": "towers"}, {"loss": "softmax", "remat": "blocks"}],
    ids=str,
)
def test_a_training_step_gives_the_numbers_of_numpy_without_a_wait(options, cupy_backend, no_waits):
    params, images, tokens = batch()
    want_loss, want_grads = sr.loss_and_grads(params, images, tokens, CONFIG, **options)
    update, init = sr.optim.adamw_update, sr.optim.adamw_init
    want, _ = update(want_grads, init(params), params, lr=1e-3)
    on_device, pictures, words = (
        to_device(cupy_backend, (params)),
        *(cupy_backend.asarray(x) for x in (images, tokens)),
    )
    with no_waits():
        loss, grads = sr.loss_and_grads(on_device, pictures, words, CONFIG, **options)
        clipped, _ = sr.optim.clip_by_global_norm(grads, 1e9)
        new, _ = update(clipped, init(on_device), on_device, lr=1e-3)
    np.testing.assert_allclose(cupy_backend.to_numpy(loss), want_loss, rtol=1e-13)
    largest = max(np.max(np.abs(g)) for g in flatten(want_grads).values())
    for path, got in flatten(to_host(cupy_backend, grads)).items():
        np.testing.assert_allclose(
            got, flatten(want_grads)[path], rtol=0, atol=1e-12 * largest, err_msg=path
        )
    for path, got in flatten(to_host(cupy_backend, new)).items():
        # Adam divides a gradient by its own size, so one that is 0 in theory has no direction.
        if not path.endswith("key/bias"):
            np.testing.assert_allclose(got, flatten(want)[path], rtol=1e-9, err_msg=path)


@pytest.mark.parametrize("rule", ["adamw_torch", "lion", "adafactor"])
def test_an_optimizer_step_does_not_wait(rule, cupy_backend, no_waits):
    params, images, tokens = batch()
    _, grads = sr.loss_and_grads(params, images, tokens, CONFIG)
    init = getattr(sr.optim, f"{rule.removesuffix('_torch')}_init")
    update = getattr(sr.optim, f"{rule}_update")
    want, _ = update(grads, init(params), params, lr=1e-3)
    p, g = to_device(cupy_backend, params), to_device(cupy_backend, grads)
    state = init(p)
    with no_waits():
        new, _ = update(g, state, p, lr=1e-3)
    for path, got in flatten(to_host(cupy_backend, new)).items():
        np.testing.assert_allclose(got, flatten(want)[path], rtol=1e-12, err_msg=path)
