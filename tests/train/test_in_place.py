"""Updates that write over what they replace: the same numbers, in the same memory."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import siglip_ref as sr
from siglip_numpy import ThreadedNumpyBackend
from siglip_ref.tree import flatten, tree_map
from siglip_train.in_place import in_place
from siglip_train.optimizer import make_optimizer
from siglip_train.settings import Settings
from siglip_train.step import initial_state, make_update

SHAPES = {"img/kernel": (7, 5), "img/bias": (5,), "txt/embedding": (40, 33), "b": ()}
blocks = st.sampled_from([1, 6, 64, 10_000])
seeds = st.integers(0, 99)


def tree(seed):
    rng = np.random.default_rng(seed)
    return sr.tree.unflatten(
        {path: np.asarray(rng.standard_normal(shape)) for path, shape in SHAPES.items()}
    )


def two_steps(update, optimizer, params, seed):
    state = optimizer.init(params)
    for number in range(2):
        params, state = update(tree(seed + number), state, params, 0.5)
    return {"params": params, **state}


def assert_same_bits(got, want):
    got, want = flatten(got), flatten(want)
    assert got.keys() == want.keys()
    for path, leaf in want.items():
        np.testing.assert_array_equal(got[path], leaf, err_msg=path)


@pytest.mark.parametrize("rule", ["adamw", "lion"])
@given(blocks, seeds)
def test_in_blocks_of_any_size_an_update_keeps_every_bit(rule, block, seed):
    optimizer = make_optimizer(Settings(optimizer=rule))
    want = two_steps(optimizer.update, optimizer, tree(seed), seed)
    got = two_steps(in_place(optimizer.update, block, map), optimizer, tree(seed), seed)
    assert_same_bits(got, want)


@given(seeds)
def test_a_rule_over_whole_parameters_keeps_every_bit_in_place(seed):
    optimizer = make_optimizer(Settings(optimizer="adafactor"))
    assert not optimizer.elementwise
    want = two_steps(optimizer.update, optimizer, tree(seed), seed)
    got = two_steps(in_place(optimizer.update, float("inf"), map), optimizer, tree(seed), seed)
    assert_same_bits(got, want)


def test_adafactor_would_change_if_it_were_cut_into_blocks():
    optimizer = make_optimizer(Settings(optimizer="adafactor"))
    with pytest.raises(ValueError, match="broadcast"):
        two_steps(in_place(optimizer.update, 64, map), optimizer, tree(0), 0)


def test_the_new_trees_lie_in_the_memory_of_the_old_ones():
    params = tree(0)
    optimizer = make_optimizer(Settings())
    state = optimizer.init(params)
    update = in_place(optimizer.update, 8, map)
    new_params, new_state = update(tree(1), state, params, 1.0)
    old = flatten({"params": params, "mu": state["mu"], "nu": state["nu"]})
    new = flatten({"params": new_params, "mu": new_state["mu"], "nu": new_state["nu"]})
    assert all(new[path] is old[path] for path in old if old[path].ndim)


def test_frozen_parameters_are_not_written_to():
    params = tree(0)
    for leaf in flatten(params["txt"]).values():
        leaf.flags.writeable = False
    optimizer = make_optimizer(Settings(freeze=("txt/",)))
    new_params, _ = in_place(optimizer.update, 8, map)(tree(1), optimizer.init(params), params, 1.0)
    assert_same_bits(new_params["txt"], params["txt"])
    assert not np.array_equal(new_params["img"]["kernel"], tree(0)["img"]["kernel"])


def test_a_missing_gradient_is_named_and_nothing_is_written():
    params, grads = tree(0), tree(1)
    del grads["img"]["bias"]
    optimizer = make_optimizer(Settings())
    with pytest.raises(ValueError, match="they differ in img/bias"):
        in_place(optimizer.update, 8, map)(grads, optimizer.init(params), params, 1.0)
    assert_same_bits(params, tree(0))


def test_the_average_is_not_the_parameters_that_a_step_writes_over():
    settings = Settings(ema=0.5, clip_norm=0)
    state = initial_state(tree(0), settings)
    backend = ThreadedNumpyBackend()
    with backend.parallel_map() as parallel_map:
        update, average = make_update(settings, backend, parallel_map)
        params, _ = update(tree(1), state.optimizer, state.params, (1.0, 1.0))
        ema, _ = average(params, {}, state.ema, None)
    assert_same_bits(ema, tree_map(lambda p, old: 0.5 * old + 0.5 * p, params, tree(0)))


def test_clipping_by_the_factor_is_clipping_by_the_norm():
    grads = tree(1)
    clipped, norm = sr.optim.clip_by_global_norm(grads, 0.1)
    factor = sr.optim.clip_factor(norm, 0.1)
    assert_same_bits(tree_map(partial(np.multiply, factor), grads), clipped)
    assert sr.optim.clip_factor(norm, float("inf")) == 1


def test_arrays_that_cannot_be_written_to_are_copied_before_they_are():
    frozen = np.ones(3)
    frozen.flags.writeable = False
    backend = ThreadedNumpyBackend()
    assert backend.asarray(frozen).flags.writeable
    assert not np.shares_memory(backend.asarray(frozen), frozen)
    free = np.ones(3)
    assert np.shares_memory(backend.asarray(free), free)
