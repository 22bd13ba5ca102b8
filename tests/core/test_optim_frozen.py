"""Frozen parameters (SigLiT) neither move nor decay, and cost neither arithmetic nor memory."""

import numpy as np
import pytest

from optimizer_runs import every_optimizer, problem
from siglip_ref import optim
from siglip_ref.tree import flatten, tree_map


def freeze_dense(path):
    return None if path.startswith("dense/") else 0.5


def trees(state):
    """The parts of a state that are trees, which is all but the count."""
    return [part for part in state if isinstance(part, dict)]


@every_optimizer
def test_frozen_leaves_and_their_state_stay_the_same_objects(init, update):
    params, grads = problem(3)
    state = init(params)
    new, new_state = params, state
    for g in grads:
        new, new_state = update(g, new_state, new, lr=1e-2, weight_decay=0.3, schedule=freeze_dense)
    for path, leaf in flatten(params).items():
        frozen = path.startswith("dense/")
        assert (flatten(new)[path] is leaf) == frozen
        for before, after in zip(trees(state), trees(new_state), strict=True):
            same = flatten(before)[path] is flatten(after)[path]
            assert same if frozen else (not same or flatten(before)[path].size == 0)


@every_optimizer
def test_a_frozen_leaf_needs_no_usable_gradient(init, update):
    params, grads = problem(1)
    grads[0]["dense"] = tree_map(lambda g: np.full_like(g, np.nan), grads[0]["dense"])
    new, state = update(grads[0], init(params), params, lr=1e-2, schedule=freeze_dense)
    assert new["dense"]["kernel"] is params["dense"]["kernel"]
    assert all(
        np.all(np.isfinite(leaf)) for part in trees(state) for leaf in flatten(part).values()
    )


@every_optimizer
def test_a_state_made_for_frozen_leaves_holds_nothing_for_them(init, update):
    params, grads = problem(3)
    state = init(params, freeze_dense)
    for part in trees(state):
        assert part["dense"]["kernel"].nbytes == part["dense"]["bias"].nbytes == 0
    full, lean = (params, init(params)), (params, state)
    for g in grads:
        full, lean = (update(g, s, p, lr=1e-2, schedule=freeze_dense) for p, s in (full, lean))
    for path, leaf in flatten(full[0]).items():
        np.testing.assert_array_equal(flatten(lean[0])[path], leaf, err_msg=path)


@every_optimizer
def test_thawing_a_leaf_that_has_no_moments_is_refused(init, update):
    params, grads = problem(1)
    state = init(params, lambda path: None if path == "t_prime" else 1.0)
    with pytest.raises(ValueError, match="state has no moments for t_prime"):
        update(grads[0], state, params, lr=1e-2)


@every_optimizer
def test_everything_can_be_frozen(init, update):
    params, grads = problem(1)
    new, _ = update(grads[0], init(params, lambda _: None), params, lr=1.0, schedule=lambda _: None)
    assert all(flatten(new)[path] is leaf for path, leaf in flatten(params).items())


def test_frozen_is_told_from_slow_by_none_alone():
    params, grads = problem(1)
    for factor, frozen in ((None, True), (0.0, False), (1e-300, False)):
        _, state = optim.adamw_update(
            grads[0], optim.adamw_init(params), params, lr=1.0, schedule=lambda _, f=factor: f
        )
        assert np.all(state.mu["dense"]["kernel"] == 0) == frozen
