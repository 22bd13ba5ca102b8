"""A few cases with true answers, for the tests of the protocol."""

from dataclasses import replace

import ml_dtypes
import numpy as np

from siglip_spec.operations import OPERATIONS
from siglip_spec.protocol.question import keyed
from siglip_spec.runner import run_case
from siglip_spec.suites import Case
from strategies import unit_rows


def on_the_grid(array):
    return np.asarray(array).astype(ml_dtypes.bfloat16).astype(np.float64)


def sigmoid_case(name, n, d, m=None, b=-2.5):
    rng = np.random.default_rng([n, d])
    inputs = {"zimg": unit_rows(rng, n, d), "ztxt": unit_rows(rng, m or n, d)}
    inputs |= {"t_prime": np.asarray(1.25), "b": np.asarray(b)}
    case = Case(
        id=f"loss.sigmoid/{name}",
        profile="loss",
        operation="sigmoid_loss",
        clauses=("LOSS-1",),
        comment=name,
        attrs={},
        inputs={key: on_the_grid(array) for key, array in inputs.items()},
        cotangents={"loss": np.asarray(1.0)},
    )
    if m is not None:
        return replace(case, rejected="shape")
    answer = OPERATIONS[case.operation].reference(case.inputs, case.attrs, case.cotangents)
    expected = {f"out/{key}": np.asarray(array) for key, array in answer.out.items()}
    expected |= {f"grad/{key}": np.asarray(array) for key, array in answer.grad.items()}
    return replace(
        case,
        expected=expected,
        scale={name: np.ones(array.shape) for name, array in expected.items()},
        underflow={name: np.zeros(array.shape) for name, array in expected.items()},
    )


FIRST, VICTIM, THIRD = (sigmoid_case(f"n{n}-d{d}/plain", n, d) for n, d in ((3, 2), (5, 4), (7, 3)))
MISFIT = sigmoid_case("n5-m3/misfit", 5, 4, m=3)
CASES = (FIRST, VICTIM, MISFIT, THIRD)


def statuses(subject, cases=CASES, **settings):
    """The status of every check of every case, and its message or reason."""
    records = [record for case in cases for record in run_case(subject, case, **settings)]
    return {r.check: (r.status, r.message or r.reason or "") for r in records}


def assert_all_passed(found):
    others = {check: outcome for check, outcome in found.items() if outcome[0] != "passed"}
    assert found
    assert not others, others


def true_tensors(case):
    return keyed(case.id, case.expected)


def declared(**other):
    said = {"protocol": 1, "subject": "acme-rs 0.3", "dtype": "float32"}
    return said | {"operations": ["sigmoid_loss"], "gradients": ["sigmoid_loss"]} | other
