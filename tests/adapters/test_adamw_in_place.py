"""AdamW of one parameter in its own memory: the core's numbers, on NumPy and Torch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import siglip_ref as sr
from backends import library
from siglip_numpy.adamw import BLOCK
from siglip_numpy.adamw import adamw_leaf as numpy_leaf
from siglip_ref.optim.adamw import AdamwRates, adamw_leaf
from siglip_train.backends import find_backend
from siglip_train.loop import on_device
from siglip_train.settings import Settings
from siglip_train.step import initial_state, make_update
from strategies import seeds

torch = library("torch")

from siglip_torch.adamw import adamw_leaf as torch_leaf  # noqa: E402

LEAVES = {"numpy": (numpy_leaf, np.asarray), "torch": (torch_leaf, torch.from_numpy)}
RATES = AdamwRates(lr=1e-2, weight_decay=1e-3, beta1=0.9, beta2=0.95, eps=1e-8)
sizes = st.sampled_from([(), (1,), (3, 5), (BLOCK - 1,), (2, BLOCK + 3)])
libraries = pytest.mark.parametrize("name", LEAVES)


def leaves(seed, shape, dtype="float64"):
    """p, g, μ and ν of one parameter."""
    rng = np.random.default_rng(seed)
    p, g, mu, nu = (np.asarray(rng.standard_normal(shape), dtype=dtype) for _ in range(4))
    return p, g, mu, np.asarray(nu * nu)


def assert_close(found, wanted, eps):
    for got, want in zip(map(np.asarray, found), wanted, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        np.testing.assert_allclose(got, want, rtol=8 * eps, atol=8 * eps)


@libraries
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(seeds, sizes, st.integers(1, 1000), st.sampled_from([0.0, 0.3, 1.0]), st.booleans())
def test_it_is_what_the_core_says_in_the_memory_of_what_it_is_given(
    name, dtype, seed, shape, count, factor, decaying
):
    leaf, from_numpy = LEAVES[name]
    rates = RATES if decaying else RATES._replace(weight_decay=None)
    wanted = adamw_leaf(*leaves(seed, shape, dtype), count, factor, rates)
    p, g, mu, nu = map(from_numpy, leaves(seed, shape, dtype))
    found = leaf(p, g, mu, nu, count, factor, rates)
    assert found[0] is p
    assert found[1] is mu
    assert found[2] is nu
    np.testing.assert_array_equal(np.asarray(g), leaves(seed, shape, dtype)[1])
    assert_close(found, wanted, np.finfo(dtype).eps)


@libraries
def test_mixed_precisions_and_other_orders_leave_what_they_are_given_as_it_is(name):
    leaf, from_numpy = LEAVES[name]
    p, g, mu, nu = leaves(0, (3, 5))
    for given_leaves in ((p.astype(np.float32), g, mu, nu), (p.T, g.T, mu.T, nu.T)):
        before = [x.copy() for x in given_leaves]
        found = leaf(*map(from_numpy, given_leaves), 3, 0.5, RATES)
        for array, old in zip(given_leaves, before, strict=True):
            np.testing.assert_array_equal(array, old)
        assert_close(found, adamw_leaf(*before, 3, 0.5, RATES), np.finfo(np.float32).eps)


def test_numpy_arrays_that_cannot_be_written_to_are_left_as_they_are():
    for frozen in (0, 2, 3):
        given_leaves = leaves(0, (3, 5))
        given_leaves[frozen].flags.writeable = False
        found = numpy_leaf(*given_leaves, 3, 0.5, RATES)
        for array, old in zip(given_leaves, leaves(0, (3, 5)), strict=True):
            np.testing.assert_array_equal(array, old)
        assert_close(found, adamw_leaf(*given_leaves, 3, 0.5, RATES), 1e-16)


def test_torch_without_a_rate_only_decays():
    p, g, mu, nu = map(torch.from_numpy, leaves(0, (3,)))
    found, *_ = torch_leaf(p, g, mu, nu, 1, 1.0, RATES._replace(lr=0.0))
    np.testing.assert_allclose(found, (1 - RATES.weight_decay) * p, rtol=1e-15)


@libraries
@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
def test_the_update_of_a_run_takes_it_and_gives_what_the_core_gives(name, clip_norm):
    settings = Settings(clip_norm=clip_norm, ema=0, freeze=("txt/",))
    rng = np.random.default_rng(0)

    def tree():
        kernel, table = rng.standard_normal((7, 5)), rng.standard_normal((6, 4))
        return {"img": {"kernel": kernel}, "txt": {"table": table}, "b": np.asarray(-10.0)}

    start, grads = tree(), tree()
    factor = float(sr.optim.clip_factor(sr.optim.global_norm(grads), clip_norm or np.inf))
    state = initial_state(start, settings)
    want, wanted = sr.optim.adamw_update(
        sr.tree.tree_map(lambda g: factor * g, grads),
        sr.optim.AdamState(**state.optimizer),
        start,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        beta2=settings.beta2,
        schedule=lambda path: None if path.startswith("txt/") else 0.5,
    )
    backend = find_backend(name)
    held = on_device(initial_state(sr.tree.tree_map(np.copy, start), settings), backend)
    with backend.parallel_map() as parallel_map:
        update, _ = make_update(settings, backend, parallel_map)
        moved, new = update(
            sr.tree.tree_map(lambda g: backend.asarray(g.copy()), grads),
            held.optimizer,
            held.params,
            (0.5, factor),
        )
    assert moved["img"]["kernel"] is held.params["img"]["kernel"]
    assert new["mu"]["img"]["kernel"] is held.optimizer["mu"]["img"]["kernel"]
    for got, expected in ((moved, want), (new["mu"], wanted.mu), (new["nu"], wanted.nu)):
        for path, leaf in sr.tree.flatten(expected).items():
            found = backend.to_numpy(sr.tree.flatten(got)[path])
            np.testing.assert_allclose(found, leaf, rtol=1e-14, atol=1e-15, err_msg=path)
    assert new["step"] == 1
