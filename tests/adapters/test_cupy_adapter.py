"""The core and the CuPy adapter over a stand-in for CuPy: the numbers of NumPy, without a wait.

The kernels that run here are the CUDA source itself. What only a device can show is in tests/gpu.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

import siglip_ref as sr
from cupy_cases.core import *  # noqa: F403  (the tests, which both kinds of machine run)
from cupy_cases.core import CONFIG, batch
from cupy_cases.products import *  # noqa: F403
from cupy_cases.tile_loop import *  # noqa: F403
from cupy_cases.tile_loop import arguments, on_device
from cupy_cases.vectors import *  # noqa: F403
from subjects.cupy import to_device

pytest.importorskip("cupy")
from cupy_stand_in import cublas, namespace
from cupy_stand_in.machine import MACHINE


@pytest.fixture(scope="module")
def adapter():
    with namespace.installed() as siglip_cupy:
        yield siglip_cupy


@pytest.fixture(scope="module")
def cupy_backend(adapter):
    return adapter.CupyBackend()


@pytest.fixture
def no_waits():
    return MACHINE.forbidding_waits


def test_the_towers_use_the_kernels_and_nothing_else_does(cupy_backend):
    launched = namespace.RawModule.launched
    params, images, tokens = batch()
    on_device = to_device(cupy_backend, params)
    launched.clear()
    sr.loss_and_grads(
        on_device, cupy_backend.asarray(images), cupy_backend.asarray(tokens), CONFIG, tile=2
    )
    blocks, heads = 2 + 1, 1
    # Attention weights and activations are computed again on the way back.
    assert launched.count("softmax_fwd<double>") == 2 * (blocks + heads)
    assert launched.count("softmax_bwd<double>") == blocks + heads
    assert launched.count("gelu_tanh_fwd<double>") == 2 * (blocks + heads)
    assert launched.count("gelu_tanh_bwd<double>") == blocks + heads
    norms = 2 * blocks + 2 + heads
    assert launched.count("layer_norm_fwd<double>") == norms
    assert launched.count("layer_norm_bwd<double>") == norms
    launched.clear()
    sr.loss_and_grads(params, images, tokens, CONFIG)
    assert launched == []


def test_parameters_of_another_precision_fall_back_on_the_formula(cupy_backend):
    x = np.random.default_rng(2).standard_normal((3, 5))
    params = {"scale": np.ones(5, dtype=np.float32), "bias": np.zeros(5, dtype=np.float32)}
    want, _ = sr.primitives.layer_norm_fwd(x, params, 1e-6)
    namespace.RawModule.launched.clear()
    out, _ = sr.primitives.layer_norm_fwd(
        cupy_backend.asarray(x), to_device(cupy_backend, params), 1e-6
    )
    assert namespace.RawModule.launched == []
    np.testing.assert_allclose(cupy_backend.to_numpy(out), want, rtol=1e-14)


def test_products_take_16_bit_factors_and_are_summed_in_float32(adapter, cupy_backend):
    f32, f16, bf16 = (cublas.CUDA_TYPES[f"CUDA_R_{name}"] for name in ("32F", "16F", "16BF"))
    plain, tf32 = cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_COMPUTE_32F_FAST_TF32
    wanted = {
        "float32": {(f32, f32, plain)},
        "bfloat16": {(bf16, f32, plain)},
        "float16": {(f16, f32, plain), (f32, f32, tf32)},
    }
    for dtype, products in wanted.items():
        cublas.used.clear()
        args = on_device(cupy_backend, arguments(dtype, 4, 4, 3), dtype)
        adapter.tiled_sigmoid_loss(*args, tile=2)
        assert set(cublas.used) == products
        assert len(cublas.used) == 3 * 4  # three products a tile


def test_the_backend_says_what_it_is(cupy_backend):
    assert cupy_backend.name == "cupy"
    assert str(cupy_backend.dtype("bfloat16")) == "bfloat16"
    with pytest.raises(ValueError, match="precision must be one that CuPy has, got 'float31'"):
        cupy_backend.dtype("float31")
    assert cupy_backend.compile(len) is len
    assert cupy_backend.peak_memory() == 512
    before = len(MACHINE.waits)
    cupy_backend.synchronize()
    assert MACHINE.waits[before:] == ["synchronize"]
    with cupy_backend.parallel_map() as parallel_map:
        assert list(parallel_map(abs, [-1, 2])) == [1, 2]


def test_without_a_device_it_fails_at_once(adapter, monkeypatch):
    monkeypatch.setattr(MACHINE, "devices", 0)
    with pytest.raises(RuntimeError, match="needs a CUDA device, got 0 devices; install"):
        adapter.CupyBackend()


REAL = "import siglip_cupy; siglip_cupy.CupyBackend()"


def python(*arguments):
    """What a fresh Python does, with the real CuPy and no device to be seen."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_real_cupy_without_a_driver_fails_at_once_with_what_to_do():
    done = python("-c", REAL)
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: CuPy needs a CUDA device, got cuda")
    assert "use another backend" in last


@pytest.mark.parametrize("kind", ["backend", "communicator"])
def test_the_trainer_says_so_in_one_line(kind):
    done = python("-m", "siglip_train", f"--{kind}", "cupy", "--steps", "1")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"error: {kind} cupy cannot be used here: CuPy needs a CUDA device, got" in line


def test_without_cupy_the_import_says_what_to_install():
    done = python("-c", "import sys; sys.modules['cupy'] = None\n" + REAL)
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "ImportError: siglip_cupy needs CuPy, which is not installed: "
        "pip install 'siglip-ref[cupy]'"
    )
