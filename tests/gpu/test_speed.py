"""Time and memory on the device, as ratios within one run.

The limits were set by counting bytes and operations, not by measuring: a bfloat16 tile is moved
three times (6 bytes a pair), which is a third of what its products take on a device with 600
TFLOP/s and 2.5 TB/s, and a float32 tile 4 % of it.
"""

import time

import cupy
import ml_dtypes
import numpy as np
import pytest

import siglip_ref as sr
from siglip_cupy.gemm import gemm
from siglip_cupy.kernels import ROUNDED, WIDE
from siglip_ref.fused import formula_of
from siglip_ref.primitives.gelu_tanh import gelu_tanh
from siglip_ref.tree import tree_map

D, TILE = 768, 4096
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def embeddings(n, dtype, seed=0):
    rng = cupy.random.default_rng(seed)
    pair = []
    for _ in range(2):
        z = rng.standard_normal((n, D), dtype=np.float32)
        z /= cupy.sqrt(cupy.sum(z * z, axis=1, keepdims=True))
        pair.append(z.astype(DTYPES[dtype]))
    scalars = (cupy.asarray(np.float32(x)) for x in (np.log(10.0), -10.0))
    return (*pair, *scalars)


def products_alone(zimg, ztxt, dtype):
    """The three products of every tile, and nothing else."""
    n = zimg.shape[0]
    cosines = cupy.zeros((TILE, TILE), dtype=WIDE[dtype])
    dlogits = cosines if ROUNDED[dtype] == dtype == "float32" else cosines.astype(ROUNDED[dtype])
    dzimg, dztxt = (cupy.zeros((n, D), dtype=WIDE[dtype]) for _ in range(2))
    for text in range(0, n, TILE):
        for image in range(0, n, TILE):
            x, y = zimg[image : image + TILE], ztxt[text : text + TILE]
            gemm(x, y.T, cosines)
            gemm(dlogits, y, dzimg[image : image + TILE], beta=1.0)
            gemm(dlogits.T, x, dztxt[text : text + TILE], beta=1.0)


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1.15), ("bfloat16", 1.5)])
def test_the_loss_takes_little_longer_than_its_three_products(
    dtype, limit, adapter, seconds, figure
):
    n = 32_768
    args = embeddings(n, dtype)
    floor = seconds(lambda: products_alone(*args[:2], dtype))
    taken = seconds(lambda: adapter.tiled_sigmoid_loss(*args, tile=TILE))
    rate = 6 * n * n * D / taken / 1e12
    figure(
        f"loss and gradients, n = {n}, d = {D}, {dtype}: {1000 * taken:.1f} ms, {rate:.0f} TFLOP/s,"
        f" {taken / floor:.2f} × the products alone"
    )
    assert taken <= limit * floor


def test_twice_the_batch_takes_four_times_as_long(adapter, seconds, figure):
    def taken(n):
        args = embeddings(n, "bfloat16")
        return seconds(lambda: adapter.tiled_sigmoid_loss(*args, tile=TILE))

    one, two = taken(16_384), taken(32_768)
    figure(f"loss, twice the batch: {two / one:.2f} × the time")
    assert 3.2 <= two / one <= 4.8


@pytest.mark.parametrize("n", [8_192, 32_768, 131_072])
def test_memory_is_that_of_a_tile_and_of_the_gradients(n, adapter, extra_memory, figure):
    args = embeddings(n, "bfloat16")
    taken, (loss, _) = extra_memory(lambda: adapter.tiled_sigmoid_loss(*args, tile=TILE))
    gradients = 2 * n * D * (4 + 2)  # added up in float32, handed over in bfloat16
    figure(f"loss, n = {n}: {(taken - gradients) / 2**20:.0f} MiB beside the gradients")
    assert taken <= gradients + 6 * TILE * TILE + 16 * 2**20
    assert np.isfinite(float(loss))


def test_the_host_does_not_wait_for_the_loss(adapter, figure):
    args = embeddings(32_768, "float32")
    adapter.tiled_sigmoid_loss(*args, tile=TILE)
    cupy.cuda.Device().synchronize()
    start = time.perf_counter()
    adapter.tiled_sigmoid_loss(*args, tile=TILE)
    returned = time.perf_counter() - start
    cupy.cuda.Device().synchronize()
    done = time.perf_counter() - start
    figure(f"loss: the call returns after {1000 * returned:.1f} of {1000 * done:.1f} ms")
    assert returned < done / 2


def tokens_of_a_block(dtype):
    shape = (64, 196, D)
    rng = cupy.random.default_rng(1)
    return rng.standard_normal(shape, dtype=np.float32).astype(DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fused_kernel_takes_less_than_half_the_time_of_the_formula(
    dtype, cupy_backend, seconds, figure
):
    x = tokens_of_a_block(dtype)
    ones = cupy.ones(D, dtype=x.dtype)
    params = {"scale": ones, "bias": ones}
    gelu, norm = gelu_tanh, sr.primitives.layer_norm_fwd
    calls = {
        "gelu_tanh": lambda of: of(gelu)(x),
        "layer_norm": lambda of: of(norm)(x, params, 1e-6),
    }
    for name, call in calls.items():
        fused, formula = (
            seconds(lambda c=call: c(lambda op: op)),
            seconds(lambda c=call: c(formula_of)),
        )
        figure(f"{name}, {dtype}: {1e6 * fused:.0f} µs fused, {1e6 * formula:.0f} µs by formula")
        assert fused < formula / 2


def test_a_training_step_in_bfloat16_and_what_rematerialisation_saves(
    cupy_backend, seconds, extra_memory, figure
):
    config, n = sr.variants["B/16-224"], 64
    rng = np.random.default_rng(2)

    def narrow(x):
        return cupy_backend.asarray(x.astype(ml_dtypes.bfloat16 if x.ndim else np.float32))

    params = tree_map(narrow, sr.init_params(config, rng))
    images = narrow(rng.uniform(-1, 1, (n, 224, 224, 3)).astype(np.float32))
    tokens = cupy_backend.asarray(
        rng.integers(0, config.text.vocab_size, (n, config.text.context_length))
    )
    peaks = {}
    for remat in ("nothing", "blocks"):

        def step(remat=remat):
            return sr.loss_and_grads(params, images, tokens, config, tile=TILE, remat=remat)

        peaks[remat], (loss, _) = extra_memory(step)
        taken = seconds(step, repeat=3)
        figure(
            f"B/16-224, {n} pairs, bfloat16, remat={remat}: {n / taken:.0f} pairs/s, "
            f"{peaks[remat] / 2**30:.2f} GiB"
        )
        assert np.isfinite(float(loss))
    assert peaks["blocks"] <= 0.6 * peaks["nothing"]
