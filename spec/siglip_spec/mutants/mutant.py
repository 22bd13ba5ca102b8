"""What a known bug is: the difference between the reference and a wrong implementation."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of one source file: `old`, which stands there once, becomes `new`.

    Of several lines, all but the first are written without the indentation of the line that `old`
    begins in.
    """

    module: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A bug that implementations have had, as edits of the reference's sources.

    flag
        Its name, in reports and in the vectors.
    bug
        Its number in the list of known bugs, `M01` to `M67`; several mutants may share one.
    summary
        What it does, in one line.
    effect
        What its user sees.
    clauses
        The clauses it violates.
    links
        Where it has been seen, or is asked about.
    operations
        The operations whose answers it changes.
    edits
        Applied in this order. A forward bug edits the backward pass with it, as automatic
        differentiation would have it.
    gradient_only
        The outputs are right, and only gradients are wrong.
    may_fail
        On some inputs it fails instead of answering.
    """

    flag: str
    bug: str
    summary: str
    effect: str
    clauses: tuple[str, ...]
    links: tuple[str, ...]
    operations: tuple[str, ...]
    edits: tuple[Edit, ...]
    gradient_only: bool = False
    may_fail: bool = False
