"""siglip_torch.TorchBackend: arrays to Torch and back, and the core on them."""

import numpy as np
import pytest

import siglip_ref as sr
from backends import library
from siglip_ref.backend import LOCAL_RANK, Backend, NumpyBackend
from siglip_ref.tree import flatten, tree_map
from strategies import random_params, tower_configs

torch = library("torch")

from siglip_torch import TorchBackend, tiled_sigmoid_loss  # noqa: E402
from siglip_train.backends import BACKENDS  # noqa: E402

on_the_host = pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without CUDA")


def test_it_has_all_that_a_backend_has():
    backend: Backend = TorchBackend()
    names = [name for name in dir(NumpyBackend) if not name.startswith("_")]
    assert set(names) <= set(dir(backend))
    assert backend.name == "torch"
    assert TorchBackend.sigmoid_loss is tiled_sigmoid_loss


def test_the_entry_point_names_it():
    from importlib.metadata import EntryPoint

    assert EntryPoint("torch", "siglip_torch:TorchBackend", BACKENDS).load() is TorchBackend


@pytest.mark.parametrize(("local_rank", "chosen"), [(None, []), ("0", [0]), ("1", [1]), ("5", [1])])
def test_it_is_on_the_device_of_its_local_rank_counted_round(monkeypatch, local_rank, chosen):
    used = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    for name in LOCAL_RANK:
        monkeypatch.delenv(name, raising=False)
    if local_rank is not None:
        monkeypatch.setenv("MPI_LOCALRANKID", local_rank)
    assert TorchBackend().device.type == "cuda"
    assert used == chosen


@on_the_host
def test_on_the_host_no_local_rank_is_asked_for(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "none")
    assert TorchBackend().device.type == "cpu"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "bool"])
def test_arrays_come_back_as_they_went(dtype):
    x = np.arange(24).reshape(2, 3, 4).astype(dtype)
    backend = TorchBackend()
    back = backend.to_numpy(backend.asarray(x))
    assert back.dtype == x.dtype
    assert np.array_equal(back, x)


def test_bfloat16_comes_back_as_float32():
    ml_dtypes = library("ml_dtypes")
    backend = TorchBackend()
    x = np.array([1.0, -2.5, 3e38, 1e-40], dtype=ml_dtypes.bfloat16)
    tensor = backend.asarray(x)
    assert tensor.dtype == torch.bfloat16
    back = backend.to_numpy(tensor)
    assert back.dtype == np.float32
    assert np.array_equal(back, x.astype(np.float32))


@on_the_host
def test_an_array_is_shared_if_torch_may_write_to_it_and_else_copied():
    backend = TorchBackend()
    x = np.zeros(4)
    assert backend.asarray(x).data_ptr() == x.ctypes.data
    x.flags.writeable = False
    backend.asarray(x).fill_(1.0)
    assert np.all(x == 0)


def test_arrays_of_any_layout_are_taken():
    x = np.arange(12.0).reshape(3, 4)
    backend = TorchBackend()
    for view in (x[::-1], x.T, x[:, ::2], np.broadcast_to(x[0], (2, 4)), x[0, 0], x[:0]):
        assert np.array_equal(backend.to_numpy(backend.asarray(view)), view)


def test_a_tensor_that_records_gradients_comes_to_numpy_too():
    x = torch.ones(3, requires_grad=True)
    assert np.array_equal(TorchBackend().to_numpy(x), np.ones(3))


def test_the_core_gives_numpys_loss_and_gradients_and_records_nothing():
    config = tower_configs()
    rng = np.random.default_rng(0)
    size, length = config.image.image_size, config.text.context_length
    params = random_params(config, rng)
    images = rng.uniform(-1, 1, (4, size, size, 3))
    tokens = rng.integers(0, config.text.vocab_size, (4, length))
    backend = TorchBackend()
    with backend.parallel_map() as parallel_map:
        loss, grads = backend.compile(sr.loss_and_grads)(
            tree_map(backend.asarray, params),
            backend.asarray(images),
            backend.asarray(tokens),
            config,
            microbatch=2,
            parallel_map=parallel_map,
        )
    backend.synchronize()
    want, want_grads = sr.loss_and_grads(params, images, tokens, config, microbatch=2)
    assert not loss.requires_grad
    np.testing.assert_allclose(backend.to_numpy(loss), want, rtol=1e-12)
    wanted = flatten(want_grads)
    for path, grad in flatten(grads).items():
        np.testing.assert_allclose(
            backend.to_numpy(grad), wanted[path], rtol=1e-9, atol=1e-12, err_msg=path
        )


@on_the_host
def test_on_the_host_functions_run_as_they_are():
    assert TorchBackend().compile(len) is len


def test_the_peak_of_memory_is_at_least_what_is_held():
    backend = TorchBackend()
    held = backend.asarray(np.ones(25_000_000, dtype=np.float32))
    backend.synchronize()
    assert held.element_size() * held.numel() <= backend.peak_memory() < 2**40
