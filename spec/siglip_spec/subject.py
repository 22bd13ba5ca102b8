"""An implementation under test: which operations it provides, and how its arrays are made.

subject = Subject("acme 2.1", dtype="float32", vjp=autodiff.torch)

@subject.provides("sigmoid_loss")
def loss(zimg, ztxt, t_prime, b):
    return acme.siglip_loss(zimg, ztxt, t_prime.exp(), b)
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from siglip_ref.tree import flatten, tree_map
from siglip_ref.types import Array, Tree
from siglip_spec.autodiff import Face, Outputs
from siglip_spec.operations import OPERATIONS, Answer, Operation
from siglip_spec.score import PRECISIONS, DType
from siglip_spec.suites import Case

F = TypeVar("F", bound=Callable[..., Any])


class NotClaimedError(Exception):
    """The subject does not provide what the case asks for; says why."""


class RefusedError(Exception):
    """The subject raised an error on the inputs of the case; says which."""


class SubjectError(Exception):
    """The subject failed as no refusal of inputs does: it crashed, hung, or broke the protocol."""


class Answerer(Protocol):
    """What the runner needs: a Python `Subject`, a program, or a file of responses."""

    @property
    def name(self) -> str:
        """Name and version, for the report."""

    @property
    def dtype(self) -> DType:
        """The coarsest dtype that the subject stores or accumulates in."""

    @property
    def expected_failures(self) -> Mapping[str, str]:
        """Reasons by the id of a case or check, in which `*` stands for anything."""

    def claims(self, operation: str) -> bool:
        """Whether the operation is provided."""

    def claims_gradient(self, operation: str) -> bool:
        """Whether its gradients are provided too."""

    def answer(self, case: Case) -> Answer:
        """The subject's own values, float64 NumPy arrays by path.

        Raises NotClaimedError, RefusedError or SubjectError.
        """


class Subject:
    """A Python implementation, given as functions of arrays.

    name
        Name and version, for the report.
    dtype
        What the subject stores its numbers in.
    accumulate
        What it sums products in, if that is coarser.
    from_numpy, to_numpy
        Array conversions. `from_numpy` gets float64, float32 or float16 arrays according to
        `dtype` (float32 for bfloat16, the values being exact in it), and int64 for integers.
    vjp
        `autodiff.torch` or `autodiff.jax`, which also bring the conversions; without it the
        gradients are those of the functions provided as `<operation>_bwd`.
    expected_failures
        Reasons by the id of a case or check (`*` stands for anything). They are run, and one that
        passes is a failure.

    Raises ValueError for a dtype that the kit does not know.
    """

    def __init__(
        self,
        name: str,
        *,
        dtype: DType = "float32",
        accumulate: DType | None = None,
        from_numpy: Callable[[np.ndarray], Array] | None = None,
        to_numpy: Callable[[Array], np.ndarray] | None = None,
        vjp: Face | None = None,
        expected_failures: Mapping[str, str] | None = None,
    ) -> None:
        for argument, value in (("dtype", dtype), ("accumulate", accumulate or dtype)):
            if value not in PRECISIONS:
                raise ValueError(
                    f"{argument} must be one of {', '.join(PRECISIONS)}, got {value!r}"
                )
        if vjp is not None and not isinstance(vjp, Face):
            raise TypeError(f"vjp must be autodiff.torch or autodiff.jax, got {vjp!r}")
        self.name = name
        self.storage: DType = dtype
        roundoff = {d: PRECISIONS[d].unit_roundoff for d in (dtype, accumulate or dtype)}
        self.dtype: DType = max(roundoff, key=lambda d: roundoff[d])
        self.expected_failures: Mapping[str, str] = dict(expected_failures or {})
        self._vjp = vjp
        self._from_numpy = from_numpy
        self._to_numpy = to_numpy
        self._functions: dict[str, Callable[..., Any]] = {}
        self._probes: dict[str, Callable[..., Any]] = {}

    def provides(self, operation: str) -> Callable[[F], F]:
        """Decorate the function that is this operation, or `<operation>_bwd`, its gradient.

        The function gets the inputs as keywords, by the names of the spec, or in their order if
        it names them otherwise; of the attributes it gets those that it names. It returns the
        output, or several as a tuple in their order or as a dict. A `_bwd` gets the inputs and
        the cotangents (`dloss`, …), and returns the gradients of the differentiable inputs.

        Raises ValueError for an operation that does not exist.
        """
        base = operation.removesuffix("_bwd")
        if base not in OPERATIONS:
            raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}, got {operation!r}")

        def register(function: F) -> F:
            self._functions[operation] = function
            return function

        return register

    def probes(self, operation: str) -> Callable[[F], F]:
        """Decorate a function of the operation's inputs that returns named intermediates.

        Raises ValueError for an operation that does not exist.
        """
        if operation not in OPERATIONS:
            raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}, got {operation!r}")

        def register(function: F) -> F:
            self._probes[operation] = function
            return function

        return register

    def claims(self, operation: str) -> bool:
        """Whether the operation is provided."""
        return operation in self._functions

    def claims_gradient(self, operation: str) -> bool:
        """Whether its gradients are, by hand or by the framework."""
        by_framework = self._vjp is not None and operation in self._functions
        return by_framework or f"{operation}_bwd" in self._functions

    def answer(self, case: Case) -> Answer:
        """The subject's own values for a case, float64 NumPy arrays by path."""
        operation = OPERATIONS[case.operation]
        if not self.claims(operation.name):
            raise NotClaimedError(f"{operation.name} is not provided")
        inputs = {name: self._native(case.inputs[name]) for name in operation.inputs}
        cotangents = {name: self._native(array) for name, array in case.cotangents.items()}
        try:
            out, grad = self._run(operation, inputs, case, cotangents)
            probe = self._probe(operation, inputs, case)
        except NotImplementedError as error:
            raise NotClaimedError(str(error) or f"{operation.name} raised {error!r}") from error
        except Exception as error:
            raise RefusedError(f"{type(error).__name__}: {error}") from error
        return Answer(
            *({k: self._plain(v) for k, v in group.items()} for group in (out, grad, probe))
        )

    def _run(
        self, operation: Operation, inputs: dict[str, Tree], case: Case, cotangents: Outputs
    ) -> tuple[Outputs, Outputs]:
        def function(given: dict[str, Tree]) -> Outputs:
            result = call(self._functions[operation.name], operation, given, case.attrs)
            return named(operation.outputs, result)

        backward = self._functions.get(f"{operation.name}_bwd")
        if not cotangents or (backward is None and self._vjp is None):
            return function(inputs), {}
        if backward is None:
            assert self._vjp is not None
            return self._vjp.vjp(function, inputs, operation.differentiable, cotangents)
        seeds = {f"d{name}": array for name, array in cotangents.items()}
        gradients = call(backward, operation, inputs, case.attrs, seeds)
        return function(inputs), named(tuple(f"d{x}" for x in operation.differentiable), gradients)

    def _probe(self, operation: Operation, inputs: dict[str, Tree], case: Case) -> Outputs:
        if operation.name not in self._probes:
            return {}
        found = call(self._probes[operation.name], operation, inputs, case.attrs)
        return dict(found)

    def _native(self, tree: Tree) -> Tree:
        storage = PRECISIONS[self.storage].storage

        def convert(array: np.ndarray) -> Array:
            floating = np.issubdtype(array.dtype, np.floating)
            # A copy: the vectors are read-only, and a subject may write to its inputs.
            fresh = np.array(array, dtype=storage if floating else np.int64)
            if self._from_numpy is not None:
                return self._from_numpy(fresh)
            return fresh if self._vjp is None else self._vjp.from_numpy(fresh, self.storage)

        return tree_map(convert, tree)

    def _plain(self, array: Array) -> np.ndarray:
        if self._to_numpy is not None:
            array = self._to_numpy(array)
        elif self._vjp is not None:
            array = self._vjp.to_numpy(array)
        return np.asarray(array, dtype=np.float64)


def call(
    function: Callable[..., Any],
    operation: Operation,
    inputs: dict[str, Tree],
    attrs: Mapping[str, Any],
    cotangents: Mapping[str, Array] | None = None,
) -> Any:
    """`function` of the inputs, shards as lists, and of the attributes that it names."""
    arguments: dict[str, Any] = {
        name: _as_list(inputs[name]) if name in operation.shards else inputs[name]
        for name in operation.inputs
    } | dict(cotangents or {})
    parameters = inspect.signature(function).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    settings = {name: value for name, value in attrs.items() if anything or name in parameters}
    if anything or all(name in parameters for name in arguments):
        return function(**arguments, **settings)
    return function(*arguments.values(), **settings)


def named(names: tuple[str, ...], result: Any) -> Outputs:
    """What a function returned, by path: a bare value, a tuple in order, or a dict.

    Raises TypeError if there are not as many values as names.
    """
    if isinstance(result, Mapping) and set(result) <= set(names):
        values = dict(result)
    elif len(names) == 1:
        values = {names[0]: result}
    elif isinstance(result, tuple | list) and len(result) == len(names):
        values = dict(zip(names, result, strict=True))
    else:
        got = f"{len(result)}" if isinstance(result, tuple | list) else type(result).__name__
        raise TypeError(f"the function must return {', '.join(names)}, got {got}")
    return flatten({name: _without_lists(value) for name, value in values.items()})


def _as_list(parts: dict[str, Tree]) -> list[Tree]:
    return [parts[str(rank)] for rank in range(len(parts))]


def _without_lists(tree: Tree) -> Tree:
    if isinstance(tree, list | tuple):
        return {str(index): _without_lists(child) for index, child in enumerate(tree)}
    if isinstance(tree, Mapping):
        return {name: _without_lists(child) for name, child in tree.items()}
    return tree
