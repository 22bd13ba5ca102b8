"""The known bugs are what they are said to be: edits that apply, and answers that are wrong."""

import sys
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from derivatives import Case as Slopes
from derivatives import assert_gradient_is_the_slope
from siglip_ref.tree import unflatten
from siglip_spec.clauses import CLAUSES
from siglip_spec.mutants import MUTANTS, UNDETECTABLE, Edit, Mutant, answers, load
from siglip_spec.mutants.loader import applied, sources
from siglip_spec.operations import OPERATIONS
from siglip_spec.score import score
from siglip_spec.suites import PROFILES, load_profile

BUGS = [f"M{number:02d}" for number in range(1, 68)]

NOT_SMOOTH = {"LogitsBfloat16", "SoftplusFloat16"}
"""They round on the way forward: their outputs are stairs, which have no slope."""

SIZES = {"siglip": 3, "encode_image": 2, "encode_text": 2, "block": 1, "map_head": 1}
"""Operations that are made of others; a bug in a part need not be looked at in the whole."""

NOTICED = 2.0
"""Tolerances of float64 that a wrong answer is off by at least."""


SAME_FUNCTIONS = {("PatchOrderHW", "PosembTransposed")}
"""A tower does not see in which order its tokens come, so each of the two undoes the other; the
operation `patch_embed` tells them apart."""


@cache
def cases():
    """All cases that have an answer, by operation."""
    found = {}
    for profile in PROFILES:
        for case in load_profile(profile):
            if case.rejected is None:
                found.setdefault(case.operation, []).append(case)
    return found


@cache
def answers_to(operation):
    """The answers of each known bug, by its flag, to the cases of the operation."""
    found = {}
    for case in cases()[operation]:
        for mutant, answer in answers(case):
            found.setdefault(mutant.flag, []).append(answer and tensors(answer))
    return found


def tensors(answer):
    return {
        f"{group}/{path}": np.asarray(x, dtype=np.float64)
        for group in ("out", "grad")
        for path, x in getattr(answer, group).items()
    }


def differences(case, got, want):
    """The tensors in which an answer is not the other, to the tolerances of the case."""
    if got is None or want is None:
        return set() if got is want else {"no answer"}
    assert got.keys() >= case.scale.keys()
    return {name for name in case.scale if distance(case, name, got[name], want[name]) > NOTICED}


def distance(case, name, got, want):
    if got.shape != want.shape:
        return np.inf
    if np.array_equal(got, want, equal_nan=True):
        return 0.0
    return score(got, want, case.scale[name], case.underflow[name], "float64").value


EVERY_MUTANT = pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
EVERY_USE = pytest.mark.parametrize(
    ("mutant", "operation"),
    [
        pytest.param(mutant, operation, id=f"{mutant.flag}-{operation}")
        for mutant in MUTANTS.values()
        for operation in mutant.operations
    ],
)


# --- the catalogue --------------------------------------------------------------------------------


def test_every_known_bug_has_a_mutant_or_a_reason_why_not_and_never_both():
    with_mutant = {mutant.bug for mutant in MUTANTS.values()}
    assert not with_mutant & UNDETECTABLE.keys()
    assert sorted(with_mutant | UNDETECTABLE.keys()) == BUGS
    assert all(reason.endswith(".") for reason in UNDETECTABLE.values())


@EVERY_MUTANT
def test_a_mutant_says_what_it_is(mutant):
    assert mutant.flag == "".join(part for part in mutant.flag if part.isalnum())
    assert mutant.flag[0].isupper()
    for line in (mutant.summary, mutant.effect):
        assert line
        assert "\n" not in line
        assert not line.endswith(".")
    assert mutant.links
    assert mutant.clauses
    assert set(mutant.clauses) <= CLAUSES.keys()
    assert mutant.operations
    assert len(set(mutant.operations)) == len(mutant.operations)
    assert set(mutant.operations) <= OPERATIONS.keys()
    assert mutant.edits


def test_no_two_mutants_share_a_flag():
    from siglip_spec.mutants import accuracy, loss, primitives, ring, text, tiles, towers, training

    catalogues = [
        *(accuracy.ACCURACY_MUTANTS, loss.LOSS_MUTANTS, primitives.PRIMITIVE_MUTANTS),
        *(ring.RING_MUTANTS, text.TEXT_MUTANTS, tiles.TILE_MUTANTS),
        *(towers.TOWER_MUTANTS, training.TRAINING_MUTANTS),
    ]
    assert len(MUTANTS) == sum(map(len, catalogues))


# --- loading --------------------------------------------------------------------------------------


@EVERY_MUTANT
def test_every_edit_finds_its_text_once(mutant):
    text = dict(sources())
    for edit in mutant.edits:
        changed = applied(edit, text[edit.module])
        assert changed != text[edit.module]
        text[edit.module] = changed


@pytest.mark.parametrize(
    ("source", "times"), [("x = 1\n", 0), ("y = 2\ny = 2\n", 2), ("y = 2; y = 2\n", 2)]
)
def test_an_edit_whose_text_is_not_there_exactly_once_is_refused(source, times):
    with pytest.raises(ValueError, match=f"found it {times} times: 'y = 2'"):
        applied(Edit("made.up", "y = 2", "y = 3"), source)


def test_lines_of_an_edit_are_indented_as_the_line_that_they_stand_in():
    source = "def f(x):\n    if x:\n        y = 2\n        z = 3\n    y = 2\n    return 0\n"
    got = applied(Edit("made.up", "y = 2\nz = 3", "for _ in x:\n    y = 4\nz = 5"), source)
    assert got == source.replace(
        "        y = 2\n        z = 3\n", "        for _ in x:\n            y = 4\n        z = 5\n"
    )


def made_up(*edits):
    return Mutant(
        flag="MadeUp",
        bug="M01",
        summary="",
        effect="",
        clauses=(),
        links=(),
        operations=(),
        edits=edits,
    )


def test_a_mutant_with_an_edit_that_does_not_apply_is_named():
    with pytest.raises(ValueError, match=r"^MadeUp: .* in siglip_ref\.params, found it 0 times"):
        load(made_up(Edit("siglip_ref.params", "not in there", "")))


def test_loading_leaves_the_modules_of_the_process_alone():
    import siglip_ref
    import siglip_spec

    before = dict(sys.modules)
    operations, losses = siglip_spec.operations, siglip_ref.losses
    copy = load(made_up(Edit("siglip_ref.params", "INITIAL_B = -10.0", "INITIAL_B = -9.0")))
    assert copy.OPERATIONS["initial_scalars"].reference({}, {}, {}).out["b"] == -9
    assert OPERATIONS["initial_scalars"].reference({}, {}, {}).out["b"] == -10
    assert sys.modules == before
    assert siglip_spec.operations is operations
    assert siglip_ref.losses is losses


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_copy_without_edits_answers_as_the_reference_to_the_last_bit(operation):
    copy = load(made_up()).OPERATIONS[operation]
    for case in cases()[operation]:
        question = case.inputs, case.attrs, case.cotangents
        got, want = copy.reference(*question), OPERATIONS[operation].reference(*question)
        for ours, theirs in zip(got, want, strict=True):
            assert list(ours) == list(theirs)
            for path, x in ours.items():
                np.testing.assert_array_equal(x, theirs[path], err_msg=path)


# --- the answers ----------------------------------------------------------------------------------


def wrong_tensors(mutant, operation):
    """The tensors that a known bug gets wrong in any case of the operation."""
    found = zip(cases()[operation], answers_to(operation)[mutant.flag], strict=True)
    return set().union(*(differences(case, got, case.expected) for case, got in found))


@EVERY_USE
def test_a_known_bug_is_noticed_in_every_operation_that_it_names(mutant, operation):
    assert wrong_tensors(mutant, operation)


@EVERY_MUTANT
def test_a_bug_of_gradients_leaves_all_outputs_right_and_no_other_does(mutant):
    wrong = set().union(*(wrong_tensors(mutant, operation) for operation in mutant.operations))
    outputs = {name for name in wrong if name.startswith("out/")}
    if mutant.gradient_only:
        assert not outputs
    else:
        assert outputs or wrong == {"no answer"}


@pytest.mark.parametrize(
    "mutant", [m for m in MUTANTS.values() if m.may_fail], ids=lambda m: m.flag
)
def test_a_mutant_that_may_fail_does_and_also_answers(mutant):
    found = [x for operation in mutant.operations for x in answers_to(operation)[mutant.flag]]
    assert any(answer is None for answer in found)
    assert any(answer is not None for answer in found)


def test_cases_that_must_be_refused_have_no_wrong_answers():
    refused = [case for profile in PROFILES for case in load_profile(profile) if case.rejected]
    assert refused
    assert not any(True for case in refused for _ in answers(case))


def test_no_two_known_bugs_answer_alike_to_every_case_of_what_they_share():
    def differ(one, other, operation):
        found = answers_to(operation)
        return any(
            differences(case, mine, theirs)
            for case, mine, theirs in zip(
                cases()[operation], found[one.flag], found[other.flag], strict=True
            )
        )

    alike = []
    for one, other in combinations(MUTANTS.values(), 2):
        shared = [operation for operation in one.operations if operation in other.operations]
        if shared and not any(differ(one, other, operation) for operation in shared):
            alike.append((one.flag, other.flag))
    assert set(alike) == SAME_FUNCTIONS


def smallest_uses(mutant):
    """The differentiable operations that a bug names, without those made of others of them."""
    named = [name for name in mutant.operations if OPERATIONS[name].differentiable]
    least = min((SIZES.get(name, 0) for name in named), default=0)
    return [name for name in named if SIZES.get(name, 0) == least]


def telling_case(mutant, operation):
    """The first ordinary case that the mutant answers wrongly, in numbers, or else the first."""
    answered = [
        (case, got)
        for case, got in zip(cases()[operation], answers_to(operation)[mutant.flag], strict=True)
        if case.profile != "accuracy" and got is not None
    ]
    wrong = [
        case
        for case, got in answered
        if differences(case, got, case.expected)
        and all(map(np.all, map(np.isfinite, got.values())))
    ]
    return (wrong or [case for case, _ in answered])[0]


@pytest.mark.parametrize(
    ("mutant", "operation"),
    [
        pytest.param(mutant, operation, id=f"{mutant.flag}-{operation}")
        for mutant in MUTANTS.values()
        if not mutant.gradient_only and mutant.flag not in NOT_SMOOTH
        for operation in smallest_uses(mutant)
    ],
)
def test_a_wrong_function_comes_with_the_gradient_of_that_function(mutant, operation):
    case = telling_case(mutant, operation)
    wrong = load(mutant).OPERATIONS[operation]
    output = wrong.outputs[0]

    def forward(*inputs):
        moved = {**case.inputs, **dict(zip(wrong.differentiable, inputs, strict=True))}
        return np.asarray(wrong.reference(moved, case.attrs, {}).out[output]), moved

    def backward(moved, dout):
        gradients = unflatten(wrong.reference(moved, case.attrs, {output: dout}).grad)
        return tuple(gradients[f"d{name}"] for name in wrong.differentiable)

    inputs = {name: case.inputs[name] for name in wrong.differentiable}
    rng = np.random.default_rng(7)
    assert_gradient_is_the_slope(Slopes(forward, backward, inputs), rng)
