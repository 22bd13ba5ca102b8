"""How tests compare float64 arrays with the oracle's exact numbers, and gradients with others."""

import numpy as np

from siglip_ref.tree import flatten

VANISHING = 1e-30
"""Far below any float64 rounding error here, far above the oracle's."""


def as_lists(tree):
    """A nested dict of arrays as the oracle takes it: nested lists of floats, exactly."""
    if isinstance(tree, dict):
        return {name: as_lists(child) for name, child in tree.items()}
    return np.asarray(tree).tolist()


def assert_within(got, want, tolerance, path="result"):
    """Assert that no element is further off than `tolerance` of the largest wanted one.

    got: an array or a nested dict of arrays; want: the oracle's answer of the same structure.
    Every array is held to its own largest element. One that vanishes in theory, such as the
    gradient of a key bias, has no scale of its own: below 1e-30 the tolerance is absolute.
    """
    if isinstance(got, dict):
        assert got.keys() == want.keys(), path
        for name in got:
            assert_within(got[name], want[name], tolerance, f"{path}/{name}")
        return
    wanted = _float64(want)
    largest = np.max(np.abs(wanted))
    _assert_bounded(got, wanted, tolerance * (largest if largest > VANISHING else 1.0), path)


def assert_each_within(got, want, tolerance, path="result"):
    """Assert that every element of an array is within `tolerance` relative to itself."""
    wanted = _float64(want)
    _assert_bounded(got, wanted, tolerance * np.abs(wanted), path)


def _assert_bounded(got, wanted, bound, path):
    assert got.dtype == np.float64, path
    assert got.shape == wanted.shape, path
    error = np.abs(got - wanted)
    worst = np.unravel_index(np.argmax(np.where(error > bound, error, -1.0)), error.shape)
    index = [int(i) for i in worst]
    assert np.all(error <= bound), (
        f"{path}{index}: got {got[worst]!r}, want {wanted[worst]!r}, off by {error[worst]:.3g}, "
        f"bound {np.broadcast_to(bound, error.shape)[worst]:.3g}"
    )


def _float64(want):
    return np.asarray(want, dtype=np.float64)


def assert_same_gradients(got, want, tolerance):
    """Leaf by leaf to `tolerance` of the leaf's largest element.

    Gradients that are 0 in theory, those of the key biases and of b under the softmax, have no
    size of their own: they are held to the largest gradient of all.
    """
    got, want = flatten(got), flatten(want)
    assert got.keys() == want.keys()
    largest = max(np.max(np.abs(gradient)) for gradient in want.values())
    for path, wanted in want.items():
        assert got[path].shape == wanted.shape, path
        size = np.max(np.abs(wanted))
        scale = largest if path.endswith("key/bias") or size < 1e-12 * largest else size
        error = np.max(np.abs(got[path] - wanted)) / scale
        assert error <= tolerance, f"{path}: off by {error:.3g}"


def assert_same_bits(got, want):
    """Loss and gradients agree in every bit."""
    assert got[0] == want[0]
    gradients, wanted = flatten(got[1]), flatten(want[1])
    assert gradients.keys() == wanted.keys()
    for path, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, wanted[path], err_msg=path)
