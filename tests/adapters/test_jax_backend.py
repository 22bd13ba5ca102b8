"""JAX as a backend of the trainer: arrays move and keep their digits, and steps are compiled."""

import numpy as np
import pytest

import siglip_ref as sr
from backends import library
from siglip_ref.backend import NumpyBackend
from siglip_ref.losses import TiledSigmoidLoss

jax = library("jax")
import jax.numpy as jnp  # noqa: E402

from siglip_jax import JaxBackend, tiled_sigmoid_loss  # noqa: E402
from siglip_jax.forms import FORMS  # noqa: E402

CONFIG = sr.SiglipConfig(
    image=sr.ImageConfig(image_size=8, patch_size=4, width=8, depth=1, mlp_dim=16, num_heads=2),
    text=sr.TextConfig(
        vocab_size=11, context_length=4, width=8, depth=1, mlp_dim=16, num_heads=2, out_dim=8
    ),
)


@pytest.fixture
def backend():
    return JaxBackend()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int32"])
def test_arrays_go_to_the_device_and_back_as_they_are(backend, dtype):
    host = np.asarray([[1, 2], [3, 4]], dtype=dtype)
    array = backend.asarray(host)
    assert isinstance(array, jax.Array)
    back = backend.to_numpy(array)
    assert back.dtype == host.dtype
    np.testing.assert_array_equal(back, host)


def test_bfloat16_comes_back_in_float32_which_has_all_of_its_numbers(backend):
    back = backend.to_numpy(jnp.asarray([1 / 3, 2.0**100, -0.0], dtype=jnp.bfloat16))
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, np.float32([0.333984375, 2.0**100, -0.0]))


def test_float64_without_x64_is_refused_and_not_rounded(backend):
    with jax.enable_x64(False), pytest.raises(TypeError, match="x has the dtype float64"):
        backend.asarray(np.zeros(2))


def test_what_is_compiled_is_traced_once(backend):
    traced = []

    def double(x):
        traced.append(x)
        return 2 * x

    compiled = backend.compile(double)
    assert [float(compiled(backend.asarray(np.asarray(x)))) for x in (1.0, 2.0)] == [2.0, 4.0]
    assert len(traced) == 1


def test_after_synchronize_everything_has_been_computed(backend):
    x = backend.asarray(np.full((600, 600), 1 / 600, dtype=np.float32))
    pending = [jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda _, y: y @ x, x))(x) for _ in "ab"]
    backend.synchronize()
    assert all(array.is_ready() for array in pending)


def test_peak_memory_grows_with_what_is_held(backend):
    before = backend.peak_memory()
    size = max(before, 2**26)
    held = jnp.ones(size // 4 + 2**22, dtype=jnp.float32) + 1
    backend.synchronize()
    assert backend.peak_memory() > max(before, 2**26)
    assert float(held[-1]) == 2.0


def test_it_has_a_name_a_map_and_a_fast_loss(backend):
    assert backend.name == "jax"
    assert isinstance(backend.sigmoid_loss, TiledSigmoidLoss)
    assert backend.sigmoid_loss is tiled_sigmoid_loss
    with backend.parallel_map() as parallel_map:
        assert list(parallel_map(abs, [-1, 2])) == [1, 2]


@pytest.mark.parametrize("tile", [None, 2])
def test_a_compiled_step_has_the_gradients_of_numpy(backend, tile):
    rng = np.random.default_rng(0)
    params = sr.tree.tree_map(lambda p: p.astype(np.float64), sr.init_params(CONFIG, rng))
    images, tokens = rng.uniform(-1, 1, (5, 8, 8, 3)), rng.integers(0, 11, (5, 4))

    def gradients(backend):
        def step(params, images, tokens):
            return sr.loss_and_grads(
                params, images, tokens, CONFIG, tile=tile, block_loss=backend.sigmoid_loss
            )

        inputs = (backend.asarray(x) for x in (images, tokens))
        found = backend.compile(step)(sr.tree.tree_map(backend.asarray, params), *inputs)
        return float(found[0]), sr.tree.flatten(sr.tree.tree_map(backend.to_numpy, found[1]))

    (loss, got), (want_loss, want) = gradients(backend), gradients(NumpyBackend())
    assert loss == pytest.approx(want_loss, rel=1e-13)
    assert got.keys() == want.keys()
    largest = max(np.max(np.abs(gradient)) for gradient in want.values())
    for path, gradient in want.items():
        np.testing.assert_allclose(got[path], gradient, rtol=0, atol=1e-12 * largest, err_msg=path)


@pytest.mark.parametrize("remat", ["nothing", "blocks"])
def test_of_a_step_that_is_not_compiled_the_towers_are_once_for_all_batches(backend, remat):
    rng = np.random.default_rng(0)
    params = sr.tree.tree_map(lambda p: p.astype(np.float64), sr.init_params(CONFIG, rng))
    device_params = sr.tree.tree_map(backend.asarray, params)
    before = {operation: form._cache_size() for operation, form in FORMS.items()}
    for _ in range(2):
        images, tokens = rng.uniform(-1, 1, (4, 8, 8, 3)), rng.integers(0, 11, (4, 4))
        on_device = map(backend.asarray, (images, tokens))
        loss, grads = sr.loss_and_grads(device_params, *on_device, CONFIG, remat=remat)
        want_loss, want = sr.loss_and_grads(params, images, tokens, CONFIG)
        assert float(loss) == pytest.approx(float(want_loss), rel=1e-12)
        for path, wanted in sr.tree.flatten(want).items():
            got = backend.to_numpy(sr.tree.flatten(grads)[path])
            np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12, err_msg=path)
    assert {operation: form._cache_size() for operation, form in FORMS.items()} == {
        operation: count + 1 for operation, count in before.items()
    }


def test_remat_saves_a_compiled_step_most_of_its_memory(backend):
    image = sr.ImageConfig(image_size=64, patch_size=8, width=8, depth=8, mlp_dim=32, num_heads=2)
    config = sr.SiglipConfig(image=image, text=CONFIG.text)
    rng = np.random.default_rng(0)
    params = sr.tree.tree_map(backend.asarray, sr.init_params(config, rng))
    images = backend.asarray(rng.uniform(-1, 1, (4, 64, 64, 3)).astype(np.float32))
    tokens = backend.asarray(rng.integers(0, 11, (4, 4)))

    def temporaries(remat):
        step = jax.jit(
            lambda params, images, tokens: sr.loss_and_grads(
                params, images, tokens, config, remat=remat
            )
        )
        compiled = step.lower(params, images, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Of eight blocks one is whole at a time, and of the others the input is there.
    assert temporaries("blocks") < 0.3 * temporaries("nothing")
