"""The ring over torch.distributed: the numbers of a single device, and errors that name a rank."""

import ast
import contextlib
import functools
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import ClassVar

import numpy as np
import pytest

import siglip_ref as sr
from backends import library
from ring_program import TIMEOUT
from siglip_ref.communicator import Communicator
from siglip_spec import check_subject
from siglip_spec.operations import Answer
from siglip_spec.subject import RefusedError, SubjectError
from subjects.gloo import Ranks

torch = library("torch")

import siglip_torch  # noqa: E402 - needs Torch, without which these tests are skipped
import torch_ring_program  # noqa: E402
from siglip_ref.faults import GRACE, Notice, Reason, verdict  # noqa: E402
from siglip_torch.message import is_finite, to_tensor  # noqa: E402
from torch_ring_program import T_PRIME, B, pairs_of, shard  # noqa: E402

PROGRAM = "torch_ring_program"
WORLD_SIZES = range(1, 9)
IN_TIME = TIMEOUT + 2 * GRACE + 3.0
"""Seconds, with three for what a rank does between its messages on a busy machine."""

MESSAGES = {
    "raises": r"rank 1 failed in ring step [12]",
    "nan": r"rank 1 holds a number that is not finite in ring step 2",
    "dtype": r"rank 1 sent float32 \(\d, 5\) in ring step 2 .*rank 2 expected float64",
    "width": r"rank 1 sent float64 \(\d, 3\) in ring step 2 .*rank 2 expected float64 \(\d, 5\)",
    "skips": r"rank 1 sent .* in ring step 2 .*rank 2 expected .* in ring step 3",
    "hangs": r"rank 1 did nothing for 2 s; rank \d waited for it in ring step [12]",
    "long": r"rank 1 sent float64 \(9001,\) .*rank \d expected float64 \(9000,\)",
}


@pytest.fixture(scope="module")
def context():
    """Processes that a server forks, which has imported Torch but not used it."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["torch.distributed.nn", "siglip_torch"])
    return found


@pytest.fixture(scope="module")
def ranks(context):
    """Eight processes; the first so many of them form a group."""
    with Ranks(max(WORLD_SIZES), start="forkserver") as found:
        yield found


@functools.cache
def whole(world_size):
    """The losses and gradients of the whole batch on a single device."""
    shards = [tuple(shard(rank, world_size)) for rank in range(world_size)]
    zimg, ztxt = (np.concatenate(parts) for parts in zip(*shards, strict=True))
    softmax = sr.losses.tiled_softmax_loss(zimg, ztxt, T_PRIME)
    return sr.losses.tiled_sigmoid_loss(zimg, ztxt, T_PRIME, B), softmax, softmax


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_any_number_of_processes_gives_the_numbers_of_a_single_device(ranks, world_size):
    answers = ranks.run(f"{PROGRAM}:losses", [()] * world_size)
    for kind in ("ndarray", "Tensor"):
        for number, (loss, grads) in enumerate(whole(world_size)):
            found = [answer[kind][number] for answer in answers]
            assert {value for value, _ in found} == {found[0][0]}
            assert abs(found[0][0] - float(loss)) <= 1e-12 * max(1, abs(float(loss)))
            for place, expected in enumerate(grads):
                parts = [parts[place] for _, parts in found]
                got = np.concatenate(parts) if expected.ndim else parts[0]
                np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_sums_are_the_same_to_the_last_bit_on_all_ranks(ranks, world_size):
    rng = np.random.default_rng(world_size)
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    shapes = ((), (3, 5), (123, 457))  # of which the last is added up by the all-reduce

    def part():
        return [torch.tensor(rng.standard_normal(s), dtype=d) for d in dtypes for s in shapes]

    parts = [part() for _ in range(world_size)]
    answers = ranks.run(f"{PROGRAM}:collectives", [(part,) for part in parts])
    everyone = tuple((rank, 10 * rank) for rank in range(world_size))
    assert all(answer[1:] == (everyone, ((),) * world_size) for answer in answers)
    for number, addends in enumerate(zip(*parts, strict=True)):
        sums = [answer[0][number] for answer in answers]
        for found in sums:
            assert found.dtype == addends[0].dtype
            assert found.shape == addends[0].shape
            assert torch.equal(found, sums[0])
        exact = torch.stack([x.double() for x in addends]).sum(0)
        size = torch.stack([x.double().abs() for x in addends]).sum(0)
        error = ((sums[0].double() - exact).abs() / size).max()
        assert error <= world_size * torch.finfo(addends[0].dtype).eps


def test_a_few_numbers_are_added_in_the_order_of_the_ranks(ranks):
    parts = [np.asarray([x], dtype=np.float32) for x in (1e8, 3.0, -1e8, 4.0)]
    answers = ranks.run(f"{PROGRAM}:collectives", [([part],) for part in parts])
    in_order = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    assert in_order != sum(reversed(parts))
    assert [answer[0] for answer in answers] == [[in_order]] * 4


def test_what_arrives_is_what_was_sent_whatever_its_dtype(ranks):
    bfloat16 = library("ml_dtypes").bfloat16

    def arrays(rank):
        x = np.random.default_rng(rank).standard_normal((pairs_of(rank), 4))
        read_only = x.astype(np.float16)
        read_only.flags.writeable = False
        tensor = torch.from_numpy(x).requires_grad_()
        return x[:, ::2], read_only, x.astype(bfloat16), x.astype(np.int32), tensor.bfloat16()

    sent = [
        tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in arrays(r)) for r in range(3)
    ]
    answers = ranks.run(f"{PROGRAM}:hops", [(arrays,) for arrays in sent])
    for rank, found in enumerate(answers):
        expected = sent[rank - 1]
        assert len(found) == len(expected) + 1
        for got, wanted in zip(found, (*expected, expected[0]), strict=True):
            assert type(got) is type(wanted)
            assert got.dtype == wanted.dtype
            assert (got == wanted).all()


@pytest.mark.parametrize("fault", MESSAGES)
def test_all_stop_in_time_and_name_the_rank_and_the_ring_step(ranks, fault):
    answers = ranks.run(f"{PROGRAM}:faulty", [(fault, 1)] * 4)
    for rank, (kind, at_fault, step, message, seconds) in enumerate(answers):
        assert seconds < IN_TIME, (rank, seconds)
        if rank == 1 and fault == "raises":
            assert (kind, message) == ("RuntimeError", "out of luck")
            continue
        assert kind == "RingError", (rank, kind, message)
        assert at_fault == (1,), (rank, message)
        assert re.search(MESSAGES[fault], message), (rank, message)
        assert step == -1 if fault == "long" else step in (1, 2, 3)


@pytest.mark.parametrize("at", [0, 2, 3])
def test_whichever_rank_holds_nan_is_the_one_that_is_named(ranks, at):
    for kind, at_fault, *_ in ranks.run(f"{PROGRAM}:faulty", [("nan", at)] * 4):
        assert (kind, at_fault) == ("RingError", (at,))


class RingSubject:
    """The ring on processes, as a subject of the conformance kit."""

    name, dtype = "sr.ring over torch.distributed", "float64"
    expected_failures: ClassVar = {}

    def __init__(self, ranks):
        self._ranks = ranks

    def claims(self, operation):
        return operation in ("ring_sigmoid_loss", "ring_softmax_loss")

    claims_gradient = claims

    def answer(self, case):
        zimg, ztxt = case.inputs["zimg"], case.inputs["ztxt"]
        scalars = [case.inputs[name] for name in ("t_prime", "b") if name in case.inputs]
        parts = [(case.operation, [zimg[r], ztxt[r], *scalars]) for r in map(str, range(len(zimg)))]
        try:
            ranks = self._ranks.run(f"{PROGRAM}:answer", parts)
        except SubjectError as error:
            raise RefusedError(str(error)) from error
        dloss = case.cotangents["loss"]
        grad = {
            f"{name}/{rank}": dloss * grads[name]
            for rank, (_, grads) in enumerate(ranks)
            for name in ("dzimg", "dztxt")
        }
        value, grads = ranks[0]
        grad |= {name: dloss * grads[name] for name in ("dt_prime", "db") if name in grads}
        return Answer({"loss": value}, grad, {})


def test_the_ring_conforms_to_the_spec(ranks):
    report = check_subject(RingSubject(ranks), "ring")
    assert report.ok
    assert report.counts()["passed"] > 90


# --- processes that die or hang -------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, context):
    """What the others say of a rank that is killed, stopped, or killed with the store on it."""
    files = tmp_path_factory.mktemp("files")
    port = _free_port()
    launches = {
        "files": ((4, 4), ("killed", "stopped"), f"file://{files}/store"),
        "tcp": ((3,), ("killed",), f"tcp://127.0.0.1:{port}"),
    }
    started = {}
    for name, (sizes, faults, init_method) in launches.items():
        folder = tmp_path_factory.mktemp(name)
        at = 0 if name == "tcp" else 1
        for rank in range(sum(sizes)):
            arguments = (init_method, rank, sizes, faults, at, str(folder))
            child = context.Process(target=torch_ring_program.process, args=arguments, daemon=True)
            child.start()
            started[name, rank] = child, folder / f"{rank}.txt"
    try:
        silent = {("files", 1), ("files", 5), ("tcp", 0)}
        end = time.monotonic() + 60
        for place, (child, _) in started.items():
            if place not in silent:
                child.join(max(0.0, end - time.monotonic()))
        return {
            place: ast.literal_eval(said.read_text()) if said.exists() else None
            for place, (_, said) in started.items()
        }
    finally:
        for child, _ in started.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            child.join()


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize(
    ("launch", "others", "at_fault", "message"),
    [
        ("files", (0, 2, 3), 1, r"rank 1 closed its connection; rank \d waited for it in ring"),
        ("files", (4, 6, 7), 1, r"rank 1 did nothing for 2 s; rank \d waited for it in ring step"),
        ("tcp", (1, 2), 0, r"rank 0 closed its connection; rank \d waited for it in ring step"),
    ],
    ids=["killed", "stopped", "killed with the store"],
)
def test_processes_name_one_that_is_gone(outcomes, launch, others, at_fault, message):
    for rank in others:
        kind, found, step, said, seconds = outcomes[launch, rank]
        assert (kind, found) == ("RingError", (at_fault,)), (rank, said)
        assert re.search(message, said), (rank, said)
        assert step in (1, 2, 3)
        assert seconds < IN_TIME, (rank, seconds)


# --- torchrun -------------------------------------------------------------------------------------


def torchrun(*arguments):
    """Two processes of the program, whose warnings are errors."""
    launcher = [sys.executable, "-W", "error", "-m", "torch.distributed.run"]
    launcher += ["--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, torch_ring_program.__file__, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )


def test_torchrun_gives_the_numbers_of_a_single_device():
    run = torchrun()
    assert run.returncode == 0, run.stderr
    expected = [float(loss) for loss, _ in whole(2)]
    for rank in range(2):
        (numbers,) = re.findall(rf"rank {rank}: (\[.*?\])", run.stdout)
        np.testing.assert_allclose(ast.literal_eval(numbers), expected, rtol=1e-12)


def test_torchrun_ends_and_says_which_rank_holds_nan():
    run = torchrun("nan", "1")
    assert run.returncode != 0
    assert "rank 1 holds a number that is not finite in ring step 1" in run.stderr


def test_without_torchrun_the_error_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="got no WORLD_SIZE, MASTER_ADDR, MASTER_PORT"):
        siglip_torch.world().__enter__()


# --- one process ----------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    with siglip_torch.TorchCommunicator() as comm:
        yield comm
    torch.distributed.destroy_process_group()


def test_a_process_alone_sends_nothing(alone):
    assert isinstance(alone, Communicator)
    assert (alone.rank, alone.world_size) == (0, 1)
    x = np.ones((2, 3))
    assert alone.sum(x) is x
    assert alone.start_shift((x,), rows=2, step=0).wait() == (x,)
    assert alone.gather((7,)) == ((7,),)


def test_arrays_of_other_libraries_are_refused():
    array = library("jax").numpy.ones(3)
    message = r"sends arrays of Torch and of NumPy, got a jax.*\.ArrayImpl; .* by mpiexec"
    with pytest.raises(TypeError, match=message):
        to_tensor(array)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(dtype, bad):
    x = torch.ones((100, 3), dtype=getattr(torch, dtype))
    assert is_finite(x)
    assert is_finite(x[:0])
    for place in (0, 1, 150, 299):
        y = x.clone()
        y.view(-1)[place] = bad
        assert not is_finite(y)


# --- the verdict ----------------------------------------------------------------------------------


def silent(accuser, *suspects):
    return Notice(accuser, suspects, 1, Reason.SILENT)


def mismatch(accuser, *suspects):
    return Notice(accuser, suspects, 1, Reason.MISMATCH, "this", "that")


@pytest.mark.parametrize(
    ("notices", "at_fault"),
    [
        ([silent(2, 1), Notice(3, (3,), 2, Reason.FAILED), silent(0, 3)], [3]),
        ([silent(3, 2), silent(2, 1), silent(0, 3)], [1]),
        ([silent(0, 1, 2, 3), silent(2, 0, 1, 3), silent(3, 0, 1, 2)], [1]),
        ([mismatch(1, 0), mismatch(2, 1), silent(3, 2)], [1]),
        ([mismatch(1, 0), mismatch(0, 1)], [0, 1]),
        ([mismatch(rank, 1) for rank in range(4)], [1]),
    ],
    ids=["its own word", "a chain", "all wait for all", "the odd one", "two disagree", "a vote"],
)
def test_the_rank_at_fault_is(notices, at_fault):
    assert list(verdict(notices)) == at_fault


def test_the_package_lists_its_names():
    assert {"TorchCommunicator", "world"} <= set(siglip_torch.__all__)
    assert all(hasattr(siglip_torch, name) for name in siglip_torch.__all__)
