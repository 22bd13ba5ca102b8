"""What Adafactor keeps, in which precision, and how it differs from big_vision's by layout."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from optimizer_runs import SCALINGS, problem
from siglip_ref import optim
from siglip_ref.tree import flatten, tree_map


def bytes_held(x):
    """The memory an array keeps alive, which for a view is that of its base."""
    while x.base is not None:
        x = x.base
    return x.nbytes


def test_the_second_moments_of_a_matrix_hold_its_rows_and_columns_only():
    params = {"a": {"kernel": np.ones((256, 512), np.float32)}}
    state = optim.adafactor_init(params)
    for _ in range(2):
        for part, size in ((state.rows, 256), (state.columns, 512), (state.whole, 0)):
            assert part["a"]["kernel"].shape == (size,)
            assert bytes_held(part["a"]["kernel"]) <= 4 * max(size, 1)
        params, state = optim.adafactor_update(params, state, params, lr=1e-3)


def test_a_matrix_is_factored_from_32_rows_and_columns_on():
    shapes = {"yes": (32, 33), "tall": (40, 31), "flat": (31, 40), "vector": (64,), "scalar": ()}
    state = optim.adafactor_init({name: np.zeros(shape) for name, shape in shapes.items()})
    assert {name: leaf.size == 0 for name, leaf in flatten(state.whole).items()} == {
        name: name == "yes" for name in shapes
    }


@pytest.mark.parametrize("shape", [(40, 53), (53, 40), (47, 47)])
def test_rows_and_columns_may_be_the_longer_ones(shape):
    rng = np.random.default_rng(0)
    params, grads = {"a": rng.standard_normal(shape)}, [rng.standard_normal(shape) for _ in "1234"]
    with jax.enable_x64(True):
        chain = optax.chain(*SCALINGS["adafactor"])
        their_state = chain.init(params)
        state = optim.adafactor_init(params)
        for g in grads:
            updates, their_state = chain.update({"a": g}, their_state, params)
            params, state = optim.adafactor_update({"a": g}, state, params, lr=1.0)
            np.testing.assert_allclose(state.mu["a"], updates["a"], rtol=1e-12, atol=1e-12)


def test_big_vision_factors_each_head_for_itself_where_here_a_kernel_is_factored_whole():
    d, h, k = 40, 2, 35
    g = np.random.default_rng(0).standard_normal((d, h, k)) * np.array([1.0, 5.0])[:, None]
    with jax.enable_x64(True):
        chain = optax.chain(*SCALINGS["adafactor"])
        theirs, _ = chain.update({"a": g}, chain.init({"a": g}), {"a": g})

    def direction(g):
        return optim.adafactor_update({"a": g}, optim.adafactor_init({"a": g}), {"a": g}, lr=1.0)[1]

    theirs = np.asarray(theirs["a"])
    heads = np.stack([direction(g[:, i]).mu["a"] for i in range(h)], axis=1)
    np.testing.assert_allclose(heads, theirs, rtol=1e-12)
    whole = np.reshape(direction(np.reshape(g, (d, h * k))).mu["a"], g.shape)
    assert np.max(np.abs(whole - theirs)) > 1e-3


def test_big_vision_does_not_factor_the_kernel_of_patches_smaller_than_32():
    for p, factored in ((14, False), (16, False), (32, True)):
        state = SCALINGS["adafactor"][0].init({"a": np.zeros((p, p, 3, 48), np.float32)})
        assert (state.v_row["a"].size > 1) == factored
        here = optim.adafactor_init({"a": np.zeros((p * p * 3, 48), np.float32)})
        assert here.whole["a"].size == 0


def test_a_narrow_momentum_is_rounded_only_to_be_kept():
    params, grads = problem(3)
    params, *grads = (tree_map(lambda x: np.asarray(x, np.float32), t) for t in (params, *grads))
    narrow = optim.adafactor_init(params, momentum_dtype=np.float16)
    for g in grads:
        # The same state with its momentum widened beforehand takes the same step.
        wide = narrow._replace(mu=tree_map(lambda m: np.asarray(m, np.float32), narrow.mu))
        want, wide = optim.adafactor_update(g, wide, params, lr=1e-2)
        params, narrow = optim.adafactor_update(g, narrow, params, lr=1e-2)
        for path, leaf in flatten(want).items():
            np.testing.assert_array_equal(flatten(params)[path], leaf, err_msg=path)
            kept = flatten(narrow.mu)[path]
            assert kept.dtype == np.float16
            np.testing.assert_array_equal(kept, flatten(wide.mu)[path].astype(np.float16))


@pytest.mark.parametrize("xp", [jnp, torch], ids=["jax", "torch"])
def test_the_momentum_can_be_kept_in_bfloat16(xp):
    params = {"a": {"kernel": xp.ones((33, 34), dtype=xp.float32)}}
    state = optim.adafactor_init(params, momentum_dtype=xp.bfloat16)
    for _ in range(2):
        params, state = optim.adafactor_update(params, state, params, lr=1e-2)
        assert state.mu["a"]["kernel"].dtype == xp.bfloat16
        assert state.rows["a"]["kernel"].dtype == params["a"]["kernel"].dtype == xp.float32


def test_the_first_update_with_a_momentum_in_bfloat16_is_that_of_optax():
    params, grads = problem(1)
    chain = optax.chain(
        SCALINGS["adafactor"][0], optax.ema(0.9, debias=False, accumulator_dtype=jnp.bfloat16)
    )
    with jax.enable_x64(True):
        params, g = (jax.tree.map(jnp.asarray, tree) for tree in (params, grads[0]))
        updates, theirs = chain.update(g, chain.init(params), params)
        state = optim.adafactor_init(params, momentum_dtype=jnp.bfloat16)
        new, state = optim.adafactor_update(g, state, params, lr=1.0, weight_decay=0.0)
        for path, leaf in flatten(params).items():
            step = np.asarray(leaf - flatten(new)[path])
            np.testing.assert_allclose(step, flatten(updates)[path], rtol=1e-12, atol=1e-12)
            assert flatten(state.mu)[path].dtype == flatten(theirs[1].ema)[path].dtype
