"""Derivatives backwards, by a tape: all elements in one run of a formula and one sweep.

Every number remembers the numbers that it was made of and its slope by each. Going back from the
results in the reverse order of their making, each passes what it has of the derivative on to them
(reverse mode; Griewank and Walther, Evaluating Derivatives, chapter 3). It is the same for every
formula, so the oracle states no backward formula here either.
"""

from itertools import count

from .numbers import Traced, exact, map_leaves, reals


class Node(Traced):
    """A value, and (parent, slope) for each number it was made of."""

    __slots__ = ("adjoint", "number", "parents")

    numbers = count()

    def __init__(self, value, parents=()):
        self.value = value
        self.parents = parents
        self.number = next(Node.numbers)
        self.adjoint = reals.zero

    def unary(self, value, slope):
        """A function of this number."""
        return Node(value, ((self, slope),))

    def binary(self, other, value, slope, other_slope):
        """A function of this number and another."""
        return Node(value, ((self, slope), (other, other_slope)))

    def root_of_zero(self):
        """The norm of the origin: nothing moves it."""
        return Node(reals.zero)


def gradients(function, inputs, cotangents):
    """The outputs of a function, and its derivative by every float of its inputs.

    inputs: dict of arguments, nested dicts and lists of floats or reals (integers stay as they
    are, and get the derivative 0); function: returns a dict of outputs; cotangents: by output, of
    the outputs' shapes, or missing for an output that does not count.
    Returns (outputs, d sum <cotangents, outputs> / d inputs), both of reals.
    """
    traced = map_leaves(lambda x: x if isinstance(x, int) else Node(x), exact(inputs))
    outputs = function(**traced)
    for name, cotangent in exact(cotangents).items():
        seed(outputs[name], cotangent)
    sweep([output for name in cotangents for output in nodes(outputs[name])])
    return (
        map_leaves(lambda x: x.value if isinstance(x, Node) else x, outputs),
        map_leaves(lambda x: x.adjoint if isinstance(x, Node) else reals.zero, traced),
    )


def seed(output, cotangent):
    """Start the sweep: the derivative by an output is its cotangent."""
    if isinstance(output, list):
        for part, share in zip(output, cotangent, strict=True):
            seed(part, share)
    elif isinstance(output, Node):
        output.adjoint = output.adjoint + cotangent


def nodes(tree):
    """All nodes of a nested list."""
    if isinstance(tree, list):
        return [node for child in tree for node in nodes(child)]
    return [tree] if isinstance(tree, Node) else []


def sweep(results):
    """Pass the derivatives on from the results to everything that they were made of."""
    seen, waiting = {}, list(results)
    while waiting:
        node = waiting.pop()
        if node.number not in seen:
            seen[node.number] = node
            waiting.extend(parent for parent, _ in node.parents)
    for number in sorted(seen, reverse=True):
        node = seen[number]
        for parent, slope in node.parents:
            parent.adjoint = parent.adjoint + slope * node.adjoint
