"""A wrong answer is told what is wrong with it: the pattern, the known bug, the first place."""

import time
from typing import NamedTuple

import numpy as np
import pytest

from siglip_ref.tree import tree_map
from siglip_spec import mutants
from siglip_spec.diagnose import diagnose
from siglip_spec.operations import OPERATIONS, Answer
from siglip_spec.score import score
from siglip_spec.suites import load_case, load_profile, part

SIGMOID = "loss.sigmoid/n7-d5/init-bias"
MILD = "loss.sigmoid/n7-d3/mild"
PAIRWISE = "loss.pairwise/n7-m4-d3/fewer-texts"


class Bug(NamedTuple):
    flag: str
    summary: str
    clauses: tuple = ("LOSS-3",)


def truth(case):
    """The right answer, without probes."""
    copies = {name: array.copy() for name, array in case.expected.items()}
    return Answer(part(copies, "out"), part(copies, "grad"), {})


def changed(case, change, *names, group="grad"):
    """The right answer with a function applied to these tensors of a group, or to all."""
    parts = truth(case)._asdict()
    for name in names or parts[group]:
        parts[group][name] = np.asarray(change(parts[group][name]))
    return Answer(**parts)


def rounded(answer):
    """As a correct float32 implementation of the same formula might return it."""
    return Answer(
        *(
            {name: np.asarray(a, dtype=np.float32).astype(np.float64) for name, a in group.items()}
            for group in answer
        )
    )


def in_float32(tree):
    return tree_map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, tree)


def look(case, answer, dtype="float32"):
    """The diagnosis, with the scores that the runner would hand over."""
    got = {f"out/{name}": array for name, array in answer.out.items()}
    got |= {f"grad/{name}": array for name, array in answer.grad.items()}
    scores = {
        name: score(got[name], case.expected[name], case.scale[name], case.underflow[name], dtype)
        for name in case.tensors
        if name in got and got[name].shape == case.expected[name].shape
    }
    return diagnose(case, answer, scores, dtype)


@pytest.fixture
def known_bugs(monkeypatch):
    """A function that sets the known bugs and their answers; none by default."""

    def these(**answers):
        bugs = [(Bug(flag, f"summary of {flag}"), answer) for flag, answer in answers.items()]
        monkeypatch.setattr(mutants, "answers", lambda _case: iter(bugs))

    these()
    return these


def only_pattern(case, answer, dtype="float32"):
    """The first finding, which is that on the pattern of the error."""
    return look(case, answer, dtype).findings[0]


def spoilt(array, index, value):
    array[index] = value
    return array


@pytest.mark.usefixtures("known_bugs")
class TestPatterns:
    def test_elements_that_are_not_finite_are_counted_and_located(self):
        case = load_case(MILD)
        answer = changed(case, lambda x: spoilt(x, (slice(2, 4), 1), np.nan), "dzimg")
        found = only_pattern(case, answer)
        assert found == "grad/dzimg: 2 of 21 elements not finite, first nan at [2, 1]"

    def test_a_loss_that_is_infinite_is_told(self):
        case = load_case(MILD)
        found = only_pattern(case, changed(case, lambda _: np.inf, "loss", group="out"))
        assert found == "out/loss: 1 of 1 elements not finite: inf"

    def test_a_wrong_shape_is_told(self):
        case = load_case(MILD)
        found = only_pattern(case, changed(case, lambda x: x[:, :2], "dzimg"))
        assert found == "grad/dzimg: shape (7, 2), wanted (7, 3)"

    def test_a_transposed_gradient_of_another_shape_is_told(self):
        case = load_case(MILD)
        found = only_pattern(case, changed(case, np.transpose, "dzimg", "dztxt"))
        assert found == "grad/dzimg, grad/dztxt: shape (3, 7), wanted (7, 3): it is transposed"

    def test_a_transposed_square_kernel_is_told(self):
        case = next(case for case in load_profile("image") if case.operation == "block")
        name = "dparams/attn/query/kernel"
        assert only_pattern(case, changed(case, np.transpose, name)) == f"grad/{name}: transposed"

    def test_swapped_axes_of_three_are_told(self):
        case = next(case for case in load_profile("image") if case.operation == "block")
        answer = changed(case, lambda x: x.transpose(1, 0, 2), "out", group="out")
        assert "it is transposed, with the axes (1, 0, 2)" in only_pattern(case, answer)

    def test_flipped_signs_are_told_for_all_tensors_at_once(self):
        case = load_case(MILD)
        found = only_pattern(case, changed(case, np.negative))
        assert found == ("grad/dzimg, grad/dztxt, grad/dt_prime and 1 more: the sign is flipped")

    @pytest.mark.parametrize(
        ("factor", "told"),
        [
            (1 / 7, "1/7 = 1/n"),
            (7.0, "7 = n"),
            (3.0, "3 = d"),
            (1 / 3, "1/3 = 1/d"),
            (0.5, "1/2"),
            (-2.0, "-2"),
            (0.6, "3/5"),
            (0.9321, "0.9321"),
        ],
    )
    def test_a_constant_factor_is_named(self, factor, told):
        case = load_case(MILD)
        found = only_pattern(case, changed(case, lambda x: factor * x, "dzimg"))
        assert found == f"grad/dzimg: wrong by the factor {told} in all elements"

    def test_a_factor_of_the_number_of_texts_is_named(self):
        case = load_case(PAIRWISE)
        found = only_pattern(case, changed(case, lambda x: x * 4, "dzimg"))
        assert found == "grad/dzimg: wrong by the factor 4 = m in all elements"

    def test_a_factor_of_the_temperature_is_named(self):
        case = load_case("loss.sigmoid/n7-d5/init-bias")
        t = float(np.exp(case.inputs["t_prime"]))
        found = only_pattern(case, changed(case, lambda x: x / t, "dt_prime"))
        assert found.endswith(" = 1/t")

    def test_a_factor_of_the_world_size_is_named(self):
        case = load_case("ring.sigmoid/w2-d5/uneven")
        found = only_pattern(case, changed(case, lambda x: 2 * x, "dztxt/0", "dztxt/1"))
        assert found.endswith("wrong by the factor 2 = the world size in all elements")

    def test_a_single_number_has_a_factor_only_if_that_means_something(self):
        case = load_case(MILD)
        found = only_pattern(case, changed(case, lambda x: x / 7, "loss", group="out"))
        assert found == "out/loss: wrong by the factor 1/7 = 1/n"
        answer = changed(case, lambda x: x * 0.9321, "loss", group="out")
        assert not any("factor" in finding for finding in look(case, answer).findings)

    def test_a_tensor_that_vanishes_in_theory_has_no_sign_and_no_factor(self):
        case = next(case for case in load_profile("image") if case.operation == "block")
        name = "dparams/attn/key/bias"
        noise = changed(case, lambda x: -1e-3 / np.max(np.abs(x)) * x, name)
        assert look(case, noise).findings == (
            f"every output is right: the fault is in the gradient of grad/{name}; right are "
            "grad/dx, grad/dparams/ln_0/scale, grad/dparams/ln_0/bias and "
            f"{len(noise.grad) - 4} more",
        )

    def test_an_answer_of_zeros_is_told(self):
        case = load_case(MILD)
        found = only_pattern(case, changed(case, np.zeros_like, "dzimg"))
        assert found == "grad/dzimg: all elements are 0"

    def test_an_answer_of_astronomic_size_is_looked_at_without_a_warning(self):
        case = load_case(MILD)
        found = look(case, changed(case, lambda x: x * 1e300, "dzimg"), "float64")
        assert found.suspected is None

    def test_a_pattern_is_told_at_the_rounding_of_bfloat16(self):
        case = load_case(MILD)
        wrong = changed(case, lambda x: -x * (1 + 2.0**-9), "dzimg")
        assert only_pattern(case, wrong, "bfloat16") == "grad/dzimg: the sign is flipped"

    def test_right_outputs_with_wrong_gradients_are_told(self):
        case = load_case(MILD)
        found = look(case, changed(case, lambda x: x + 1, "dt_prime")).findings
        assert found[-1].startswith(
            "every output is right: the fault is in the gradient of grad/dt_prime; right are "
        )

    def test_right_gradients_with_a_wrong_output_are_told(self):
        case = load_case(MILD)
        found = look(case, changed(case, lambda x: x + 1, "loss", group="out")).findings
        assert "every gradient is right: the outputs may be off by a constant" in found


class TestKnownBugs:
    def test_an_answer_is_matched_in_all_tensors(self, known_bugs):
        case = load_case(MILD)
        bug = changed(case, lambda x: x + 1)
        known_bugs(PlusOne=bug, PlusTwo=changed(case, lambda x: x + 2))
        found = look(case, rounded(bug))
        assert found.suspected == "PlusOne"
        assert "summary of PlusOne (LOSS-3)" in found.findings[-1]

    def test_an_answer_that_differs_in_one_tensor_is_not_matched(self, known_bugs):
        case = load_case(MILD)
        known_bugs(PlusOne=changed(case, lambda x: x + 1))
        assert look(case, changed(case, lambda x: x + 1, "dzimg")).suspected is None

    def test_a_bug_that_is_as_good_as_the_truth_is_not_matched(self, known_bugs):
        case = load_case(MILD)
        known_bugs(Nothing=truth(case))
        off = 1.2 * 8 * 2.0**-24 * case.scale["grad/dzimg"].max()
        assert look(case, changed(case, lambda x: x + off, "dzimg")).suspected is None

    def test_a_bug_that_raises_is_passed_over(self, known_bugs):
        case = load_case(MILD)
        known_bugs(Raises=None)
        assert look(case, changed(case, np.negative)).suspected is None

    def test_the_nearest_of_several_bugs_is_named_and_the_others_mentioned(self, known_bugs):
        case = load_case(MILD)
        near = 2.0**-23 * case.scale["grad/db"].max()
        known_bugs(
            Near=changed(case, lambda x: x + 1 + near, "db"),
            Exact=changed(case, lambda x: x + 1, "db"),
        )
        found = look(case, changed(case, lambda x: x + 1, "db"))
        assert found.suspected == "Exact"
        assert found.findings[-1] == "as well as Near: this case cannot tell"

    def test_a_bug_that_gives_nan_is_matched_by_nan(self, known_bugs):
        case = load_case(MILD)
        known_bugs(Overflows=changed(case, lambda x: spoilt(x, (1, 1), np.nan), "dzimg"))
        answer = changed(case, lambda x: spoilt(x, (1, 1), np.nan), "dzimg")
        assert look(case, answer).suspected == "Overflows"

    def test_a_bug_too_large_for_the_dtype_is_matched_by_infinity(self, known_bugs):
        case = load_case(MILD)
        known_bugs(Huge=changed(case, lambda x: spoilt(x, (1, 1), -1e200), "dzimg"))
        answer = changed(case, lambda x: spoilt(x, (1, 1), -np.inf), "dzimg")
        assert look(case, answer).suspected == "Huge"

    def test_a_large_wrong_answer_may_have_large_rounding_errors(self, known_bugs):
        case = load_case(MILD)
        known_bugs(Sum=changed(case, lambda x: 1000 * x))
        off = changed(case, lambda x: 1000 * x * (1 + 4 * 2.0**-24))
        assert look(case, off).suspected == "Sum"

    def test_a_bug_that_shows_in_the_dtype_only_is_matched_there(self, monkeypatch):
        case = load_case(MILD)
        overflow = changed(case, lambda x: spoilt(x, (1, 1), np.inf), "dzimg")

        def answers(asked):
            narrow = asked.inputs["zimg"].dtype == np.float32
            yield Bug("Overflow", "in float32 only"), overflow if narrow else truth(case)

        monkeypatch.setattr(mutants, "answers", answers)
        assert look(case, overflow).suspected == "Overflow"
        assert look(case, overflow, "float64").suspected is None

    def test_a_subject_without_gradients_is_matched_by_its_outputs(self, known_bugs):
        case = load_case(MILD)
        bug = changed(case, lambda x: x / 7, "loss", group="out")
        known_bugs(Mean=bug)
        assert look(case, bug._replace(grad={})).suspected == "Mean"


@pytest.mark.parametrize(
    ("flag", "case_id"),
    [
        ("MeanOverPairs", SIGMOID),
        ("BiasSign", "loss.sigmoid/n5-d7/positive-bias"),
        ("LabelsZeroOne", SIGMOID),
        ("GeluErf", "image.block/n2-l5-h3-d12-f7/ordinary"),
        ("CausalText", "text.tower/n4-l5-v13-d12/head"),
    ],
)
def test_the_answer_of_a_known_bug_in_float32_names_it(flag, case_id):
    case = load_case(case_id)
    wrong = {mutant.flag: answer for mutant, answer in mutants.answers(case)}[flag]
    found = look(case, rounded(wrong))
    assert found.suspected == flag
    assert any(f"the known bug {flag} to " in finding for finding in found.findings)


@pytest.mark.parametrize("flag", ["OneMinusSigmoid", "LogSigmoidNaive"])
def test_a_bug_that_only_loses_digits_is_named_too(flag):
    case = load_case("accuracy.log_sigmoid/n2-d7/any-magnitude")
    reference = mutants.load(mutants.MUTANTS[flag]).OPERATIONS[case.operation].reference
    with np.errstate(all="ignore"):
        wrong = reference(in_float32(case.inputs), case.attrs, in_float32(case.cotangents))
    assert look(case, rounded(wrong)).suspected == flag


@pytest.mark.parametrize("case_id", [SIGMOID, "text.tower/n4-l5-v13-d12/head"])
def test_a_random_answer_names_no_bug(case_id):
    case, rng = load_case(case_id), np.random.default_rng(0)
    right = truth(case)
    random = Answer(*({name: rng.standard_normal(x.shape) for name, x in p.items()} for p in right))
    found = look(case, random)
    assert found.suspected is None
    assert not any("known bug" in finding for finding in found.findings)


def test_a_failing_tower_is_diagnosed_within_two_seconds():
    case = next(iter(load_profile("model")))
    answer = changed(case, lambda x: x + 1)
    look(case, answer)
    started = time.process_time()
    look(case, answer)
    assert time.process_time() - started < 2


@pytest.mark.usefixtures("known_bugs")
class TestProbes:
    CASE = "image.tower/n3-s12-p5-d14/leftover"

    def wrong(self, *names, change=lambda x: x * 1.001):
        """A wrong output, with these probes wrong."""
        case = load_case(self.CASE)
        probe = part(case.expected, "probe")
        probe |= {name: change(probe[name]) for name in names}
        right = truth(case)
        return case, Answer({name: -x for name, x in right.out.items()}, right.grad, probe)

    def test_the_first_that_differs_is_told_after_the_last_that_agrees(self):
        case, answer = self.wrong("block/00/attn", "block/00/mlp", "pooled")
        found = look(case, answer).findings[-1]
        assert found.startswith("block/00/attn/weights agrees, block/00/attn does not: ")

    def test_the_first_of_all_is_told(self):
        case, answer = self.wrong("patch_embed", "pooled")
        found = look(case, answer).findings[-1]
        assert found.startswith("patch_embed, the first, does not agree: ")

    def test_probes_that_the_subject_does_not_give_are_passed_over(self):
        case, answer = self.wrong("block/00/attn", "pooled")
        given = {name: answer.probe[name] for name in ("patch_embed", "pooled")}
        found = look(case, answer._replace(probe=given)).findings[-1]
        assert found.startswith("patch_embed agrees, pooled does not: ")

    def test_a_probe_of_a_wrong_shape_differs(self):
        case, answer = self.wrong("embedded", change=np.ravel)
        assert "embedded does not: it has the shape" in look(case, answer).findings[-1]

    def test_a_probe_that_is_not_finite_differs(self):
        case, answer = self.wrong("embedded", change=lambda x: x * np.nan)
        assert "patch_embed agrees, embedded does not: " in look(case, answer).findings[-1]

    def test_probes_that_all_agree_point_behind_the_last(self):
        case, answer = self.wrong()
        assert look(case, answer).findings[-1].endswith("the fault comes after pooled")

    @pytest.mark.parametrize("profile", ["image", "text", "model"])
    def test_probes_of_the_core_in_float32_agree(self, profile):
        for case in load_profile(profile):
            if not part(case.expected, "probe"):
                continue
            inputs = {name: in_float32(tree) for name, tree in case.inputs.items()}
            reference = OPERATIONS[case.operation].reference
            right = reference(inputs, case.attrs, in_float32(case.cotangents))
            wrong = {name: -np.asarray(x, dtype=np.float64) for name, x in right.out.items()}
            found = look(case, right._replace(out=wrong)).findings[-1]
            assert found.startswith(f"all {len(right.probe)} probes agree"), case.id
