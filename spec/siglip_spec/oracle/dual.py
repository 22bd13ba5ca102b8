"""Derivatives forwards, by dual numbers: one run of a formula for each element.

A dual number v + w e, e*e = 0, carries a value v and a tangent w. Running a function on inputs of
which one element has tangent 1 and all others 0 yields that element's partial derivative as the
tangent of the result (forward mode; Griewank and Walther, Evaluating Derivatives, chapter 3).
So the oracle states no backward formula: a gradient is the forward formula, run once an element.
"""

from .numbers import Traced, children, exact, pairwise, reals, rebuild


class Dual(Traced):
    """value + tangent * e with e*e = 0."""

    __slots__ = ("tangent",)

    def __init__(self, value, tangent):
        self.value = value
        self.tangent = tangent

    def unary(self, value, slope):
        """A function of this number: its tangent times the slope."""
        return Dual(value, slope * self.tangent)

    def binary(self, other, value, slope, other_slope):
        """A function of two numbers: the sum of their tangents times the slopes."""
        return Dual(value, slope * self.tangent + other_slope * other.tangent)

    def root_of_zero(self):
        """The norm of the origin; a root of 0 that moves has no derivative."""
        if self.tangent != 0:
            raise ZeroDivisionError("the square root of 0 has no derivative")
        return Dual(reals.zero, reals.zero)


def tangent_of(x):
    """The tangent of a dual number; 0 for any other number."""
    return x.tangent if isinstance(x, Dual) else reals.zero


def value(function, inputs):
    """`function(**inputs)` on exact numbers, as nested lists of reals."""
    return function(**exact(inputs))


def gradient(function, inputs, cotangent):
    """d <cotangent, function(**inputs)> / d input, for every element of every input.

    inputs: dict of numbers, nested lists, or nested dicts of them, all of floats or reals;
    cotangent: shaped like the function's result. Returns a dict shaped like `inputs`.
    """
    inputs, cotangent = exact(inputs), exact(cotangent)

    def derivative_by(path):
        seeded = replace(inputs, path, lambda leaf: Dual(leaf, reals.one))
        return tangent_of(inner(cotangent, function(**seeded)))

    return map_paths(derivative_by, inputs)


def directional_derivative(function, inputs, directions, cotangent):
    """d <cotangent, function(**inputs)> along `directions` (shaped like `inputs`), in one run."""
    moving = pairwise(Dual, exact(inputs), exact(directions))
    return tangent_of(inner(exact(cotangent), function(**moving)))


def inner(left, right):
    """Sum of the products of corresponding elements of two nested lists (or two numbers)."""
    if isinstance(left, list):
        terms = [inner(a, b) for a, b in zip(left, right, strict=True)]
        return sum(terms, start=reals.zero)
    return left * right


def map_paths(function, tree, path=()):
    """The tree with every leaf replaced by `function(path of the leaf)`."""
    parts = children(tree)
    if parts is None:
        return function(path)
    return rebuild(tree, [(key, map_paths(function, child, (*path, key))) for key, child in parts])


def replace(tree, path, function):
    """The tree with the leaf at `path` replaced by `function(leaf)`; the rest is shared."""
    if not path:
        return function(tree)
    copy = tree.copy()
    copy[path[0]] = replace(tree[path[0]], path[1:], function)
    return copy
