"""Exact numbers and exact derivatives: 40-digit reals and the dual numbers over them.

A dual number v + w e, e*e = 0, carries a value v and a tangent w. Running a function on inputs of
which one element has tangent 1 and all others 0 yields that element's partial derivative as the
tangent of the result (forward mode; Griewank and Walther, Evaluating Derivatives, chapter 3).
So the oracle states no backward formula: a gradient is the forward formula, run once an element.

Reals come from a private mpmath context of 40 digits, so the global `mpmath.mp` stays untouched.
Exponents are unbounded there: exp(10**4) does not overflow, and no formula needs a stable rewrite.
"""

from collections.abc import Callable, Iterator

from mpmath.ctx_mp import MPContext

reals = MPContext()
reals.dps = 40
Real = reals.mpf


class Dual:
    """value + tangent * e with e*e = 0; compares by value."""

    __slots__ = ("tangent", "value")

    def __init__(self, value, tangent):
        self.value = value
        self.tangent = tangent

    def __neg__(self):
        return Dual(-self.value, -self.tangent)

    def __add__(self, other):
        if isinstance(other, Dual):
            return Dual(self.value + other.value, self.tangent + other.tangent)
        return Dual(self.value + other, self.tangent)

    __radd__ = __add__

    def __sub__(self, other):
        return self + (-other)

    def __rsub__(self, other):
        return (-self) + other

    def __mul__(self, other):
        if isinstance(other, Dual):
            tangent = self.tangent * other.value + self.value * other.tangent
            return Dual(self.value * other.value, tangent)
        return Dual(self.value * other, self.tangent * other)

    __rmul__ = __mul__

    def __truediv__(self, other):
        if isinstance(other, Dual):
            quotient = self.value / other.value
            return Dual(quotient, (self.tangent - quotient * other.tangent) / other.value)
        return Dual(self.value / other, self.tangent / other)

    def __rtruediv__(self, other):
        quotient = other / self.value
        return Dual(quotient, -quotient * self.tangent / self.value)

    def __eq__(self, other):
        return self.value == value_of(other)

    def __lt__(self, other):
        return self.value < value_of(other)

    def __le__(self, other):
        return self.value <= value_of(other)

    def __gt__(self, other):
        return self.value > value_of(other)

    def __ge__(self, other):
        return self.value >= value_of(other)

    __hash__ = None


def value_of(x):
    """The value of a dual number; any other number itself."""
    return x.value if isinstance(x, Dual) else x


def tangent_of(x):
    """The tangent of a dual number; 0 for any other number."""
    return x.tangent if isinstance(x, Dual) else reals.zero


def exp(x):
    """e^x; (e^x)' = e^x."""
    if isinstance(x, Dual):
        power = reals.exp(x.value)
        return Dual(power, power * x.tangent)
    return reals.exp(x)


def log(x):
    """Natural logarithm; log' = 1/x."""
    if isinstance(x, Dual):
        return Dual(reals.log(x.value), x.tangent / x.value)
    return reals.log(x)


def log1p(x):
    """log(1 + x) without rounding 1 + x; log1p' = 1/(1 + x)."""
    if isinstance(x, Dual):
        return Dual(reals.log1p(x.value), x.tangent / (1 + x.value))
    return reals.log1p(x)


def sqrt(x):
    """Square root; sqrt' = 1/(2 sqrt).

    A sum of squares at the origin has value 0 and tangent 0: its root, the Euclidean norm, gets the
    subgradient 0. Every use here multiplies the norm by something that vanishes at the origin too
    (x / (norm + eps)), so the product's derivative is exact. A root of 0 that moves raises.
    """
    if not isinstance(x, Dual):
        return reals.sqrt(x)
    if x.value == 0 and x.tangent == 0:
        return Dual(reals.zero, reals.zero)
    root = reals.sqrt(x.value)
    return Dual(root, x.tangent / (2 * root))


def tanh(x):
    """Hyperbolic tangent; tanh' = 1/cosh^2."""
    if isinstance(x, Dual):
        return Dual(reals.tanh(x.value), x.tangent / reals.cosh(x.value) ** 2)
    return reals.tanh(x)


def exact(tree):
    """A copy of nested dicts and lists with every float made a 40-digit real of the same value.

    Integers (tokens, sizes), None, reals and dual numbers stay as they are.
    """
    if isinstance(tree, dict):
        return {name: exact(child) for name, child in tree.items()}
    if isinstance(tree, list | tuple):
        return [exact(child) for child in tree]
    return Real(tree) if isinstance(tree, float) else tree


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


def children(tree) -> Iterator | None:
    """(key, child) pairs of a dict or list; None at a leaf."""
    if isinstance(tree, dict):
        return iter(tree.items())
    return enumerate(tree) if isinstance(tree, list) else None


def rebuild(tree, parts):
    """A dict or list of the kind of `tree` from its (key, child) pairs."""
    return dict(parts) if isinstance(tree, dict) else [child for _, child in parts]


def map_paths(function: Callable, tree, path=()):
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


def pairwise(function, left, right):
    """`function(a, b)` for the corresponding leaves of two trees of one shape."""
    parts = children(left)
    if parts is None:
        return function(left, right)
    if len(left) != len(right):
        raise ValueError(f"trees differ: {len(left)} against {len(right)} children")
    return rebuild(left, [(key, pairwise(function, child, right[key])) for key, child in parts])
