"""Exact numbers: 40-digit reals, and what can stand for them where derivatives are wanted.

Reals come from a private mpmath context of 40 digits, so the global `mpmath.mp` stays untouched.
Exponents are unbounded there: exp(10**4) does not overflow, and no formula needs a stable rewrite.

`Traced` is a number that keeps track of its derivatives, forwards (`dual`) or backwards (`tape`).
Every operation is stated here once, by its value and its slopes; the formulas of the oracle are
written for numbers of any kind.
"""

from mpmath.ctx_mp import MPContext

reals = MPContext()
reals.dps = 40
Real = reals.mpf

ONE, MINUS_ONE = Real(1), Real(-1)


class Traced:
    """A value with derivatives; compares by value.

    Subclasses say what becomes of the derivatives: `unary(value, slope)` of a function of this
    number alone, `binary(other, value, slope, other_slope)` of one of this and another, and
    `root_of_zero()`.
    """

    __slots__ = ("value",)

    def __neg__(self):
        return self.unary(-self.value, MINUS_ONE)

    def __add__(self, other):
        if isinstance(other, Traced):
            return self.binary(other, self.value + other.value, ONE, ONE)
        return self.unary(self.value + other, ONE)

    __radd__ = __add__

    def __sub__(self, other):
        if isinstance(other, Traced):
            return self.binary(other, self.value - other.value, ONE, MINUS_ONE)
        return self.unary(self.value - other, ONE)

    def __rsub__(self, other):
        return self.unary(other - self.value, MINUS_ONE)

    def __mul__(self, other):
        if isinstance(other, Traced):
            return self.binary(other, self.value * other.value, other.value, self.value)
        return self.unary(self.value * other, other)

    __rmul__ = __mul__

    def __truediv__(self, other):
        if isinstance(other, Traced):
            quotient = self.value / other.value
            return self.binary(other, quotient, 1 / other.value, -quotient / other.value)
        return self.unary(self.value / other, ONE / other)

    def __rtruediv__(self, other):
        quotient = other / self.value
        return self.unary(quotient, -quotient / self.value)

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

    __hash__ = None  # type: ignore[assignment]


def value_of(x):
    """The value of a traced number; any other number itself."""
    return x.value if isinstance(x, Traced) else x


def exp(x):
    """e^x; (e^x)' = e^x."""
    if isinstance(x, Traced):
        power = reals.exp(x.value)
        return x.unary(power, power)
    return reals.exp(x)


def log(x):
    """Natural logarithm; log' = 1/x."""
    if isinstance(x, Traced):
        return x.unary(reals.log(x.value), 1 / x.value)
    return reals.log(x)


def log1p(x):
    """log(1 + x) without rounding 1 + x; log1p' = 1/(1 + x)."""
    if isinstance(x, Traced):
        return x.unary(reals.log1p(x.value), 1 / (1 + x.value))
    return reals.log1p(x)


def sqrt(x):
    """Square root; sqrt' = 1/(2 sqrt).

    At 0 it is the Euclidean norm of the origin, a root of a sum of squares, and gets the
    subgradient 0. Every use here multiplies the norm by something that vanishes at the origin too
    (x / (norm + eps)), so the product's derivative is exact.
    """
    if not isinstance(x, Traced):
        return reals.sqrt(x)
    if x.value == 0:
        return x.root_of_zero()
    root = reals.sqrt(x.value)
    return x.unary(root, 1 / (2 * root))


def tanh(x):
    """Hyperbolic tangent; tanh' = 1/cosh^2."""
    if isinstance(x, Traced):
        return x.unary(reals.tanh(x.value), 1 / reals.cosh(x.value) ** 2)
    return reals.tanh(x)


def exact(tree):
    """A copy of nested dicts and lists with every float made a 40-digit real of the same value.

    Integers (tokens, sizes), None, reals and traced numbers stay as they are.
    """
    if isinstance(tree, dict):
        return {name: exact(child) for name, child in tree.items()}
    if isinstance(tree, list | tuple):
        return [exact(child) for child in tree]
    return Real(tree) if isinstance(tree, float) else tree


def children(tree):
    """(key, child) pairs of a dict or list; None at a leaf."""
    if isinstance(tree, dict):
        return iter(tree.items())
    return enumerate(tree) if isinstance(tree, list) else None


def rebuild(tree, parts):
    """A dict or list of the kind of `tree` from its (key, child) pairs."""
    return dict(parts) if isinstance(tree, dict) else [child for _, child in parts]


def map_leaves(function, tree):
    """The tree with every leaf replaced by `function(leaf)`."""
    parts = children(tree)
    if parts is None:
        return function(tree)
    return rebuild(tree, [(key, map_leaves(function, child)) for key, child in parts])


def pairwise(function, left, right):
    """`function(a, b)` for the corresponding leaves of two trees of one shape."""
    parts = children(left)
    if parts is None:
        return function(left, right)
    if len(left) != len(right):
        raise ValueError(f"trees differ: {len(left)} against {len(right)} children")
    return rebuild(left, [(key, pairwise(function, child, right[key])) for key, child in parts])
