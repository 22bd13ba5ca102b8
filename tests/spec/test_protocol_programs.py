"""The protocol line by line: what a program's faults cost, and that nothing hangs or is left."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from protocol_cases import (
    CASES,
    FIRST,
    THIRD,
    VICTIM,
    assert_all_passed,
    declared,
    statuses,
    true_tensors,
)
from siglip_spec.protocol.live import LiveSubject
from siglip_spec.protocol.tensors import encode

PATIENCE = 20.0


FAULTY = """
import json, os, shutil, signal, subprocess, sys, time
answers, victim, fault = sys.argv[1:4]
def say(**line):
    print(json.dumps(line), flush=True)
def reply(status):
    say(id=asked["id"], status=status)
def copy(name):
    shutil.copy(os.path.join(answers, name), asked["response"])
    reply("ok")
head = json.load(open(os.path.join(answers, "handshake.json")))
say(**head)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["id"] == victim:
        exec(fault)
    elif asked["inputs"] and "misfit" in asked["id"]:
        reply("rejected: shapes")
    else:
        copy(asked["id"].replace("/", "_"))
"""


@pytest.fixture
def program(tmp_path):
    """A program that answers rightly from files, and at the victim does what it is told."""

    def command(fault, victim=VICTIM.id, **declaration):
        (tmp_path / "handshake.json").write_text(json.dumps(declared(**declaration)))
        for case in CASES:
            if case.rejected is None:
                data = encode(true_tensors(case), "float32")
                (tmp_path / case.id.replace("/", "_")).write_bytes(data)
        return [sys.executable, "-S", "-c", FAULTY, str(tmp_path), victim, fault]

    command.directory = tmp_path
    return command


CRASH = "sys.stderr.write('first\\n\\nbefore the end\\n'); "
FAULTS = {
    "ends": ("sys.exit(3)", "ended with exit status 3"),
    "ends with last words": (CRASH + "sys.exit(0)", "status 0; its last words: first | before"),
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
    "closes its output": ("os.close(1); time.sleep(60)", "closed its standard output"),
    "hangs": ("time.sleep(60)", "did not answer within 3 s"),
    "hangs in children": (
        "subprocess.Popen(['sleep', '60']); time.sleep(60)",
        "did not answer within 3 s",
    ),
    "talks to stderr without end": (
        "[os.write(2, b'x' * 999 + b'\\n') for _ in iter(int, 1)]",
        "did not answer within 3 s; its last words: xxx",
    ),
    "prints what is no JSON": (
        "print('loss = 3.5', flush=True)",
        "printed 'loss = 3.5', which is no",
    ),
    "prints bytes": ("os.write(1, bytes([255, 10]))", r"printed '\\xff', which is no JSON"),
    "prints no object": ("print(7, flush=True)", f"must reply with the id '{VICTIM.id}', got 7"),
    "prints a line without end": (
        "os.write(1, b'x' * 2**21); time.sleep(60)",
        "bytes for one line",
    ),
    "replies to another case": ("say(id='x', status='ok')", "must reply with the id"),
    "replies no status": ("reply('fine')", "status must be 'ok', "),
    "says that it failed": ("reply('error: no memory')", "no memory"),
    "says ok and writes nothing": ("reply('ok')", "said ok but wrote no response"),
    "makes a pipe of the response": (
        "os.mkfifo(asked['response']); reply('ok')",
        "said ok but wrote no response",
    ),
    "writes no safetensors": (
        "open(asked['response'], 'w').write('0.5'); reply('ok')",
        "is no safetensors file",
    ),
    "answers another case": (f"copy({FIRST.id.replace('/', '_')!r})", "is not of the case"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_the_case_it_happens_in(program, fault):
    code, message = FAULTS[fault]
    timeout = 3.0 if "within 3 s" in message else PATIENCE
    with LiveSubject(program(code), timeout) as subject:
        found = statuses(subject)
    lost = {check: outcome for check, outcome in found.items() if check.startswith(VICTIM.id)}
    assert len(lost) == 5
    for status, said in lost.values():
        assert status == "failed"
        assert message in said
    assert_all_passed({check: outcome for check, outcome in found.items() if check not in lost})


def not_a_number(tensors):
    return tensors | {f"{VICTIM.id}#grad/db": np.asarray(np.nan)}


def wrong_shape(tensors):
    return tensors | {f"{VICTIM.id}#grad/db": np.zeros((1, 1))}


def omitted(tensors):
    return {key: array for key, array in tensors.items() if not key.endswith("#grad/db")}


@pytest.mark.parametrize(
    ("change", "message"),
    [(not_a_number, "nan"), (wrong_shape, "shape (1, 1), wanted ()"), (omitted, "is missing")],
)
def test_a_wrong_array_costs_its_own_check(program, change, message):
    command = program("copy('changed')")
    data = encode(change(true_tensors(VICTIM)), "float32")
    (program.directory / "changed").write_bytes(data)
    with LiveSubject(command, PATIENCE) as subject:
        found = statuses(subject)
    status, said = found.pop(f"{VICTIM.id}[grad/db]")
    assert status == "failed"
    assert message in said
    assert_all_passed(found)


def test_a_right_program_passes(program):
    with LiveSubject(program("", victim="none"), PATIENCE) as subject:
        assert (subject.name, subject.dtype) == ("acme-rs 0.3", "float32")
        assert_all_passed(statuses(subject))


def test_a_program_that_claims_nothing_passes_nothing(program):
    with LiveSubject(program("", operations=[], gradients=[]), PATIENCE) as subject:
        found = statuses(subject)
    assert {status for status, _ in found.values()} == {"not claimed"}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit(4)", "ended with exit status 4"),
        ("sys.stderr.write('no model file'); sys.exit(4)", "its last words: no model file"),
        ("time.sleep(60)", "did not answer within 1 s"),
        ("print('hello', flush=True); time.sleep(60)", "printed 'hello', which is no JSON"),
        ("print('[]', flush=True); time.sleep(60)", "must be a JSON object"),
        ("print('{\"protocol\": 0}', flush=True)", "the handshake: protocol must be 1, got 0"),
    ],
)
def test_a_program_without_a_handshake_is_refused(code, message):
    command = [sys.executable, "-S", "-c", f"import sys, time\n{code}"]
    timeout = 1.0 if "within 1 s" in message else PATIENCE
    with pytest.raises(ValueError, match="no handshake from") as caught:
        LiveSubject(command, timeout)
    assert message in str(caught.value)


@pytest.mark.parametrize(("command", "message"), [(["./nowhere"], "nowhere"), ([], "got nothing")])
def test_a_program_that_is_none_is_refused(command, message):
    with pytest.raises(ValueError, match=message):
        LiveSubject(command)


def test_a_program_that_no_longer_starts_is_given_up(program):
    command = program("os.remove(os.path.join(answers, 'handshake.json')); sys.exit(1)")
    cases = [VICTIM, *(replace(FIRST, id=f"loss.sigmoid/again-{i}") for i in range(5))]
    with LiveSubject(command, PATIENCE) as subject:
        found = [statuses(subject, [case])[f"{case.id}[out/loss]"] for case in cases]
    assert {status for status, _ in found} == {"failed"}
    assert ["started again" in said for _, said in found] == [False, True, True, True, False, False]
    assert all("given up" in said for _, said in found[4:])


def test_a_program_that_starts_as_another_is_not_believed(program):
    change = "head['dtype'] = 'float64'; json.dump(head, open(answers + '/handshake.json', 'w'))"
    with LiveSubject(program(f"{change}; sys.exit(1)"), PATIENCE) as subject:
        found = statuses(subject, [VICTIM, FIRST])
    assert "another handshake" in found[f"{FIRST.id}[out/loss]"][1]


def test_a_program_that_never_reads_is_not_waited_for():
    # The question is longer than the pipe holds, so that writing it would wait for ever.
    head = json.dumps(declared())
    command = [
        sys.executable,
        "-S",
        "-c",
        f"import time; print({head!r}, flush=True); time.sleep(60)",
    ]
    with LiveSubject(command, 1.0) as subject:
        found = statuses(subject, [replace(FIRST, attrs={"schedule": [0.5] * 60_000})])
    assert all("did not answer within 1 s" in said for _, said in found.values())


def test_a_time_out_of_the_runner_leaves_no_late_reply_behind(program):
    with LiveSubject(program("time.sleep(1.5); reply('ok')"), PATIENCE) as subject:
        late = statuses(subject, [VICTIM], timeout=0.5)
        assert {status for status, _ in late.values()} == {"failed"}
        time.sleep(1.2)
        assert_all_passed(statuses(subject, [FIRST, THIRD]))


def test_what_the_program_started_ends_with_it(program):
    note = program.directory / "child"
    started = (
        f"child = subprocess.Popen(['sleep', '60']); open({str(note)!r}, 'w').write(str(child.pid))"
    )
    with LiveSubject(program(f"{started}; time.sleep(60)"), 3.0) as subject:
        statuses(subject, [VICTIM])
    assert is_over(int(note.read_text()))


def is_over(pid):
    """Whether a process is gone, or is waited for by nobody and does nothing any more."""
    state = Path(f"/proc/{pid}/stat")
    for _ in range(50):
        try:
            if state.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_no_temporary_file_is_left(program, tmp_path_factory, monkeypatch):
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with LiveSubject(program("sys.exit(3)"), PATIENCE) as subject:
        statuses(subject)
        [directory] = scratch.iterdir()
        assert list(directory.iterdir()) == []
    assert list(scratch.iterdir()) == []


SERVED = """
import os, sys
from siglip_spec.protocol.serve import protocol_output, serve
with protocol_output() as stdout:
    print("imported")
    from siglip_ref.losses import sigmoid_loss_bwd, sigmoid_loss_fwd
    from siglip_spec.subject import Subject
    subject = Subject("core 1", dtype="float64")
    @subject.provides("sigmoid_loss")
    def loss(zimg, ztxt, t_prime, b):
        print("asked")
        if zimg.shape[0] == 5 and len(ztxt) == 5:
            os.abort()
        if len(ztxt) != len(zimg):
            raise ValueError("as many texts as images")
        return sigmoid_loss_fwd(zimg, ztxt, t_prime, b)[0]
    @subject.provides("sigmoid_loss_bwd")
    def loss_bwd(zimg, ztxt, t_prime, b, dloss):
        return tuple(sigmoid_loss_bwd(sigmoid_loss_fwd(zimg, ztxt, t_prime, b)[1], dloss))
    serve(subject, sys.stdin, stdout)
"""


def test_a_crash_of_a_python_subject_costs_one_case():
    with LiveSubject([sys.executable, "-c", SERVED], PATIENCE) as subject:
        assert (subject.name, subject.dtype) == ("core 1", "float64")
        assert not subject.claims("dense")
        found = statuses(subject)
    lost = {check: outcome for check, outcome in found.items() if check.startswith(VICTIM.id)}
    assert {status for status, _ in lost.values()} == {"failed"}
    assert all("ended by SIGABRT" in said for _, said in lost.values())
    assert_all_passed({check: outcome for check, outcome in found.items() if check not in lost})
