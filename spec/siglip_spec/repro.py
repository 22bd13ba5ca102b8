"""A case as a script that needs NumPy only: its inputs, the formula, the wanted numbers.

The script runs as it is, with the plain function (`siglip_spec.plain`) where the user's own goes,
and ends with status 0 if that agrees with the vectors.
"""

import ast
import base64
import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from siglip_spec import mutants
from siglip_spec.operations import OPERATIONS
from siglip_spec.plain import MODULES, PLAIN, comparison
from siglip_spec.plain.comparison import LAMBDA, PRECISIONS
from siglip_spec.score import score
from siglip_spec.suites import Case

LITERAL_LIMIT = 2000
"""Arrays of more numbers are written in base64."""

_WIDTH = 99


def repro_script(
    case: Case,
    tensor: str | None = None,
    subject: str | None = None,
    suspected: str | None = None,
    index: tuple[int, ...] | None = None,
) -> str:
    """A Python script that shows what the case wants, for all outputs or for one tensor.

    tensor
        `out/…` or `grad/…` as in the case. A gradient is shown at one element, as the derivative
        of the plain function by central differences.
    subject
        Name of the implementation that is to be looked at.
    suspected
        Flag of a known bug, whose numbers are shown beside the right ones.
    index
        The element to show. By default where the bug shows most, or the largest.

    Raises ValueError for a tensor, a bug or an element that the case does not have.
    """
    if case.rejected is not None:
        body = _join(_inputs(case), _plain(case), _refusal(case))
        return _join(_header(case, None, subject, body), body)
    if tensor is not None and tensor not in case.scale:
        raise ValueError(f"tensor must be one of {', '.join(case.scale)}, got {tensor!r}")
    outputs = [name for name in case.scale if name.startswith("out/")]
    names = outputs if tensor is None else [tensor]
    bug = {} if suspected is None else _bug_values(case, suspected)
    shown = max(names, key=lambda name: _distance(case, name, bug)) if bug else names[0]
    if index is None:
        index = _worst(case, shown, bug)
    if len(index) != case.expected[shown].ndim or any(
        not 0 <= i < size for i, size in zip(index, case.expected[shown].shape, strict=True)
    ):
        raise ValueError(
            f"index must be within the shape {case.expected[shown].shape}, got {index}"
        )
    found = _of_bug(suspected, bug[shown], index) if suspected and shown in bug else ""
    body = _join(
        _inputs(case),
        _wanted(case, names, shown, index),
        _plain(case),
        _of_gradient(case, shown, found) if shown.startswith("grad/") else _of_outputs(case, found),
    )
    return _join(_header(case, tensor, subject, body), body)


# --- what is printed of the case ------------------------------------------------------------------


def _join(*parts: str) -> str:
    text = "\n\n\n".join(part.strip("\n") for part in parts if part) + "\n"
    return re.sub("\n{4,}", "\n\n\n", text)


def _title(text: str) -> str:
    return f"# --- {text} ".ljust(_WIDTH, "-")


def _header(case: Case, tensor: str | None, subject: str | None, body: str) -> str:
    lines = [
        f"{case.id}[{tensor}]" if tensor else case.id,
        "",
        f"operation  {case.operation}({', '.join(OPERATIONS[case.operation].inputs)})",
        f"clauses    {', '.join(case.clauses)}",
        f"about      {case.comment}",
        *([f"subject    {subject}"] if subject else []),
    ]
    about = "\n".join(lines).replace("\\", "\\\\").replace('"""', "'''")
    imports = ["import base64"] if "packed(" in body else []
    imports += ["import copy"] if "copy." in body else []
    imports += ["from collections.abc import Callable"] if "Callable" in body else []
    aliases = "Array = Any\nTree = Any  # nested dicts of arrays"
    usage = "# Put your own function under YOURS, then run this with Python and NumPy alone."
    modules = "\n".join((usage, *imports, "from typing import Any"))
    return _join(
        f'{modules}\n\nimport numpy as np\n\n{aliases}\n\nABOUT = """{about}\n"""',
        _source(comparison.packed) if "packed(" in body else "",
    )


def _inputs(case: Case) -> str:
    shards = OPERATIONS[case.operation].shards
    given = {
        name: [tree[str(rank)] for rank in range(len(tree))] if name in shards else tree
        for name, tree in case.inputs.items()
    }
    lines = [_title("the case"), f"inputs = {_literal(given)}", f"attrs = {_settings(case.attrs)}"]
    if case.cotangents:
        lines.append(f"cotangents = {_literal(case.cotangents)}")
    return "\n".join(lines)


def _settings(attrs: Mapping[str, Any]) -> str:
    rows = [f"    {name!r}: {value!r},\n" for name, value in attrs.items()]
    return "{\n" + "".join(rows) + "}" if rows else "{}"


def _wanted(case: Case, names: list[str], shown: str, index: tuple[int, ...]) -> str:
    return "\n".join(
        (
            f"SHOWN, INDEX = {shown!r}, {index!r}",
            'DTYPE = "float32"  # what yours computes in: one of the names below',
            f"want = {_literal({name: case.expected[name] for name in names})}",
            "# How far rounding (scale) and underflow move an element; see the tolerance below.",
            f"scale = {_literal({name: case.scale[name] for name in names})}",
            f"underflow = {_literal({name: case.underflow[name] for name in names})}",
        )
    )


def _plain(case: Case) -> str:
    return "\n\n\n".join((_title("the specification in NumPy"), *_closure(case.operation)))


def _literal(value: Any, indent: int = 0) -> str:
    """Source that makes the array, or the dict or list of arrays, with every bit of it."""
    pad = " " * (indent + 4)
    if isinstance(value, dict):
        rows = [f"{pad}{key!r}: {_literal(child, indent + 4)},\n" for key, child in value.items()]
        return "{\n" + "".join(rows) + " " * indent + "}" if rows else "{}"
    if isinstance(value, list):
        rows = [f"{pad}{_literal(child, indent + 4)},\n" for child in value]
        return "[\n" + "".join(rows) + " " * indent + "]"
    array = np.asarray(value)
    if array.size > LITERAL_LIMIT or not np.all(np.isfinite(array)) or 0 in array.shape:
        return _packed_literal(array, pad)
    numbers = array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float64)
    text = repr(numbers.tolist())
    if len(text) + indent < _WIDTH - 20:
        return f"np.array({text})"
    return f"np.array(\n{_wrapped(text, pad)}\n{pad[4:]})"


def _wrapped(text: str, pad: str) -> str:
    """The text in lines, broken after commas."""
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(pad) + len(line) + 1 + len(word) > _WIDTH:
            lines.append(pad + line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return "\n".join((*lines, pad + line))


def _packed_literal(array: np.ndarray, pad: str) -> str:
    dtype = _narrowest(array)
    text = base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode()
    width = _WIDTH - len(pad) - 2
    pieces = [f'{pad}"{text[i : i + width]}"' for i in range(0, len(text), width)] or [f'{pad}""']
    body = "\n".join(pieces)
    return f"packed(\n{pad}{dtype!r}, {tuple(array.shape)!r},\n{body}\n{pad[4:]})"


def _narrowest(array: np.ndarray) -> str:
    """The shortest dtype that holds every number exactly."""
    integer = np.issubdtype(array.dtype, np.integer)
    with np.errstate(over="ignore"):
        for dtype in ("<i2", "<i4") if integer else ("<f2", "<f4"):
            if np.array_equal(array.astype(dtype), array, equal_nan=not integer):
                return dtype
    return "<i8" if integer else "<f8"


# --- which element, and the numbers of a bug ------------------------------------------------------


def _bug_values(case: Case, flag: str) -> dict[str, np.ndarray]:
    for mutant, answer in mutants.answers(case):
        if mutant.flag == flag and answer is not None:
            outputs = {f"out/{name}": np.asarray(array) for name, array in answer.out.items()}
            return outputs | {f"grad/{name}": np.asarray(a) for name, a in answer.grad.items()}
    raise ValueError(f"suspected must be a known bug of {case.operation}, got {flag!r}")


def _distance(case: Case, name: str, bug: dict[str, np.ndarray]) -> float:
    """How far the bug is from the truth, in tolerances of float32."""
    if name not in bug:
        return -1.0
    if bug[name].shape != case.expected[name].shape:
        return float("inf")
    return score(
        bug[name], case.expected[name], case.scale[name], case.underflow[name], "float32"
    ).value


def _worst(case: Case, name: str, bug: dict[str, np.ndarray]) -> tuple[int, ...]:
    want = case.expected[name]
    if name in bug and bug[name].shape == want.shape:
        return score(bug[name], want, case.scale[name], case.underflow[name], "float32").worst_index
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(np.abs(want))), want.shape))


# --- source of the plain functions ----------------------------------------------------------------


@cache
def _definitions() -> dict[str, str]:
    """The source of every name that the plain modules define at their top level."""
    sources: dict[str, str] = {}
    for module in MODULES:
        text = inspect.getsource(module)
        for node in ast.parse(text).body:
            segment = ast.get_source_segment(text, node) or ""
            if isinstance(node, ast.FunctionDef):
                sources[node.name] = segment
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                sources[node.targets[0].id] = segment
    return sources


def _closure(name: str) -> list[str]:
    """The source of a plain function and of all that it uses, in order."""
    sources, used, todo = _definitions(), set(), [name]
    while todo:
        name = todo.pop()
        if name in sources and name not in used:
            used.add(name)
            walked = ast.walk(ast.parse(sources[name]))
            todo.extend(node.id for node in walked if isinstance(node, ast.Name))
    return [source for name, source in sources.items() if name in used]


# --- what is printed of the comparison ------------------------------------------------------------


def _source(*functions: Callable[..., Any]) -> str:
    return "\n\n".join(f"\n{inspect.getsource(function).strip()}\n" for function in functions)


def _parameters(case: Case) -> str:
    return ", ".join(inspect.signature(PLAIN[case.operation]).parameters)


def _refusal(case: Case) -> str:
    parameters = _parameters(case)
    return f'''
{_title("YOURS: put your function here")}


def yours({parameters}):
    """Must raise an error: these inputs are of a wrong {case.rejected}."""
    return {case.operation}({parameters})


print(ABOUT)
try:
    yours(**inputs, **attrs)
except Exception as error:
    print(f"refused, as it must be: {{type(error).__name__}}: {{error}}")
else:
    raise SystemExit("NOT REFUSED: these inputs must raise an error")
'''


def _precisions() -> str:
    rows = "".join(f"    {name!r}: {numbers!r},\n" for name, numbers in PRECISIONS.items())
    return f"LAMBDA = {LAMBDA!r}\nPRECISIONS = {{  # unit roundoff, smallest number\n{rows}}}"


def _comparison() -> str:
    return (
        _source(comparison.allowed, comparison.compare)
        + """

print(ABOUT)
print(f"{SHOWN}{list(INDEX) or ''}: want {want[SHOWN][INDEX]:.17g}")
for dtype in PRECISIONS:
    bound = allowed(scale[SHOWN], underflow[SHOWN], dtype)[INDEX]
    print(f"    tolerance in {dtype:<9} {bound:.3g}")
"""
    )


def _of_bug(flag: str, value: np.ndarray, index: tuple[int, ...]) -> str:
    found = f"{value[index]:.17g}" if value.ndim == len(index) else "nan"
    return f'''
error = abs(float("{found}") - want[SHOWN][INDEX])
tolerances = error / allowed(scale[SHOWN], underflow[SHOWN], DTYPE)[INDEX]
print(f"the known bug {flag} gives {found} there, {{tolerances:.3g}} tolerances of {{DTYPE}} away")
'''


def _of_outputs(case: Case, bug: str) -> str:
    parameters = _parameters(case)
    return f'''
{_title("YOURS: put your function here")}


def yours({parameters}):
    """Returns {", ".join(OPERATIONS[case.operation].outputs)}."""
    return {case.operation}({parameters})


{_title("the comparison")}
{_precisions()}
OUTPUTS = {OPERATIONS[case.operation].outputs!r}

{_source(comparison.by_path, comparison.by_output)}

{_comparison()}
{bug}
print()
got = by_output(OUTPUTS, yours(**copy.deepcopy(inputs), **attrs))
agree = [
    compare(name, got[name], want[name], scale[name], underflow[name], DTYPE) for name in want
]
raise SystemExit(0 if all(agree) else 1)
'''


def _of_gradient(case: Case, tensor: str, bug: str) -> str:
    gradient = tensor.removeprefix("grad/")
    first, *rest = gradient.removeprefix("d").split("/")
    shards = OPERATIONS[case.operation].shards
    path: list[str | int] = [first, *rest]
    if first in shards:
        path[1] = int(rest[0])
    shape = case.expected[tensor].shape
    return f'''
{_title("YOURS: put your gradient here")}


def yours({_parameters(case)}):
    """Returns {gradient}, an array of the shape {shape}; None: there is nothing to compare yet."""
    return None


{_title("the comparison")}
{_precisions()}
OUTPUTS, PATH = {OPERATIONS[case.operation].outputs!r}, {tuple(path)!r}

{_source(comparison.by_path, comparison.by_output, comparison.derivative)}


def moved(step):
    """The sum of cotangent times output, with the element of the input moved by `step`."""
    changed = copy.deepcopy(inputs)
    leaf = changed
    for key in PATH:
        leaf = leaf[key]
    leaf[INDEX] += step
    found = by_output(OUTPUTS, {case.operation}(**changed, **attrs))
    return float(sum(np.sum(c * found["out/" + name]) for name, c in cotangents.items()))


{_comparison()}
value, error = derivative(moved)
print(f"by central differences of {case.operation}: {{value:.17g}}, give or take {{error:.1g}}")
{bug}
bound = allowed(scale[SHOWN], underflow[SHOWN], DTYPE)[INDEX] + error
agree = abs(value - want[SHOWN][INDEX]) <= bound
print("the vectors", "agree" if agree else "DISAGREE", "with the differences\\n")
got = yours(**copy.deepcopy(inputs), **attrs)
if got is not None:
    agree &= compare(SHOWN, got, want[SHOWN], scale[SHOWN], underflow[SHOWN], DTYPE)
raise SystemExit(0 if agree else 1)
'''
