"""How a Python implementation is called, and what it may return."""

import numpy as np
import pytest

from backends import library
from siglip_ref.losses import sigmoid_loss_bwd, sigmoid_loss_fwd
from siglip_spec import Subject, autodiff, check_subject, load_case

CASE = load_case("loss.sigmoid/n7-d5/init-bias")
NORM = load_case("primitives.layer_norm/n4-d6/ordinary")


def numpy_loss(zimg, ztxt, t_prime, b):
    logits = np.exp(t_prime) * zimg @ ztxt.T + b
    labels = 2 * np.eye(len(zimg), dtype=zimg.dtype) - 1
    return np.sum(np.logaddexp(0, -labels * logits)) / len(zimg)


def numpy_loss_bwd(zimg, ztxt, t_prime, b, dloss):
    _, res = sigmoid_loss_fwd(zimg, ztxt, np.asarray(t_prime), np.asarray(b))
    return sigmoid_loss_bwd(res, dloss)


def subject_of(loss, **options):
    subject = Subject("ours", **options)
    subject.provides("sigmoid_loss")(loss)
    return subject


def test_a_plain_numpy_function_with_a_hand_written_gradient_conforms():
    subject = subject_of(numpy_loss)
    subject.provides("sigmoid_loss_bwd")(numpy_loss_bwd)
    report = check_subject(subject, "loss")
    passed = {record.operation for record in report.records if record.status == "passed"}
    assert report.ok
    assert passed == {"sigmoid_loss"}


def test_arguments_go_by_name_whatever_their_order():
    def reordered(b, t_prime, ztxt, zimg):
        return numpy_loss(zimg, ztxt, t_prime, b)

    answer = subject_of(reordered).answer(CASE)
    np.testing.assert_allclose(answer.out["loss"], CASE.expected["out/loss"], rtol=1e-6)


def test_arguments_of_other_names_go_by_their_order():
    answer = subject_of(numpy_loss).answer(CASE)
    np.testing.assert_allclose(answer.out["loss"], CASE.expected["out/loss"], rtol=1e-6)


def test_attributes_reach_functions_that_name_them_and_no_others():
    seen = []
    subject = Subject("ours", dtype="float64")

    @subject.provides("layer_norm")
    def with_eps(x, scale, bias, eps):
        seen.append(eps)
        return x

    subject.answer(NORM)

    @subject.provides("layer_norm")
    def without_eps(x, scale, bias):
        return x

    subject.answer(NORM)
    assert seen == [NORM.attrs["eps"]]


@pytest.mark.parametrize(
    "returned", [lambda t, b: (t, b), lambda t, b: {"t_prime": t, "b": b}, lambda t, b: [t, b]]
)
def test_several_outputs_come_as_a_tuple_or_by_name(returned):
    subject = Subject("ours")
    subject.provides("initial_scalars")(lambda: returned(np.log(10.0), -10.0))
    report = check_subject(subject, "loss")
    assert report.counts()["passed"] == 2


def test_the_wrong_number_of_outputs_is_refused_with_their_names():
    subject = Subject("ours")
    subject.provides("initial_scalars")(lambda: (1.0, 2.0, 3.0))
    report = check_subject(subject, "loss")
    messages = {record.message for record in report.records if record.status == "failed"}
    assert messages == {"raised TypeError: the function must return t_prime, b, got 3"}


def test_shards_arrive_as_a_list_in_the_order_of_the_ranks():
    case = load_case("ring.sigmoid/w3-d4/uneven")
    seen = []
    subject = Subject("ours", dtype="float64")

    @subject.provides("ring_sigmoid_loss")
    def ring(zimg, ztxt, t_prime, b):
        seen.extend(len(shard) for shard in zimg)
        return numpy_loss(np.concatenate(zimg), np.concatenate(ztxt), t_prime, b)

    answer = subject.answer(case)
    assert seen == [5, 1, 2]
    np.testing.assert_allclose(answer.out["loss"], case.expected["out/loss"], rtol=1e-14)


def test_a_subject_that_writes_its_inputs_does_not_spoil_the_vectors():
    def rude(zimg, ztxt, t_prime, b):
        loss = numpy_loss(zimg, ztxt, t_prime, b)
        zimg[...] = 0
        return loss

    subject = subject_of(rude)
    first, second = subject.answer(CASE), subject.answer(CASE)
    assert first.out["loss"] == second.out["loss"]


def test_inputs_come_in_the_storage_of_the_dtype():
    seen = []
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        subject_of(lambda zimg, *_: seen.append(zimg.dtype) or 0.0, dtype=dtype).answer(CASE)
    assert seen == [np.float64, np.float32, np.float32, np.float16]


def test_the_coarser_of_storage_and_accumulation_sets_the_tolerance():
    assert Subject("ours", dtype="float32", accumulate="bfloat16").dtype == "bfloat16"
    assert Subject("ours", dtype="bfloat16", accumulate="float32").dtype == "bfloat16"


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_torch_differentiates_by_itself(dtype):
    torch = library("torch")

    def loss(zimg, ztxt, t_prime, b):
        assert zimg.dtype == getattr(torch, dtype)
        logits = t_prime.exp() * zimg @ ztxt.T + b
        labels = 2 * torch.eye(len(logits), dtype=zimg.dtype) - 1
        return -torch.nn.functional.logsigmoid(labels * logits).sum() / len(logits)

    report = check_subject(subject_of(loss, dtype=dtype, vjp=autodiff.torch), "loss")
    claimed = [
        r for r in report.records if r.operation == "sigmoid_loss" and r.tensor != "rejected"
    ]
    assert {record.status for record in claimed} == {"passed"}
    assert max(record.score for record in claimed) < 0.5


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_jax_differentiates_by_itself(dtype):
    jax = library("jax")

    def loss(zimg, ztxt, t_prime, b):
        logits = jax.numpy.exp(t_prime) * zimg @ ztxt.T + b
        labels = 2 * jax.numpy.eye(len(logits), dtype=zimg.dtype) - 1
        return -jax.nn.log_sigmoid(labels * logits).sum() / len(logits)

    report = check_subject(subject_of(loss, dtype=dtype, vjp=autodiff.jax), "loss")
    claimed = [
        r for r in report.records if r.operation == "sigmoid_loss" and r.tensor != "rejected"
    ]
    assert {record.status for record in claimed} == {"passed"}
    # 0.8 at t = 112: JAX's gradient of logaddexp is exp(x - out), which loses the digits of out.
    assert max(record.score for record in claimed) < 1


def test_a_detached_input_has_the_gradient_zero_and_fails():
    library("torch")

    def detached(zimg, ztxt, t_prime, b):
        logits = t_prime.exp() * zimg @ ztxt.detach().T + b.detach()
        labels = 2 * logits.new_ones(len(logits)).diag() - 1
        return (-labels * logits).exp().log1p().sum() / len(logits)

    report = check_subject(subject_of(detached, vjp=autodiff.torch), "loss")
    (first, *_) = [r for r in report.records if r.check == f"{CASE.id}[grad/db]"]
    assert (first.status, first.got) == ("failed", 0.0)


def test_probes_are_part_of_the_answer():
    subject = subject_of(numpy_loss)
    subject.probes("sigmoid_loss")(lambda zimg, ztxt, **_: {"logits": zimg @ ztxt.T})
    assert subject.answer(CASE).probe["logits"].shape == (7, 7)


@pytest.mark.parametrize("name", ["sigmoid", "sigmoid_loss_fwd", ""])
def test_an_unknown_operation_is_an_error_that_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="operation must be one of sigmoid_loss, "):
        Subject("ours").provides(name)
    with pytest.raises(ValueError, match="operation must be one of sigmoid_loss, "):
        Subject("ours").probes(name)


def test_an_unknown_dtype_or_face_is_an_error():
    with pytest.raises(ValueError, match=r"dtype must be one of .* got 'fp32'"):
        Subject("ours", dtype="fp32")
    with pytest.raises(ValueError, match="accumulate must be one of"):
        Subject("ours", accumulate="tf32")
    with pytest.raises(TypeError, match=r"vjp must be autodiff.torch or autodiff.jax"):
        Subject("ours", vjp="torch")
