"""The protocol in files: what is written, and what of a response is believed."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from protocol_cases import (
    CASES,
    FIRST,
    MISFIT,
    VICTIM,
    assert_all_passed,
    declared,
    statuses,
    true_tensors,
)
from siglip_spec.operations import OPERATIONS
from siglip_spec.protocol import files
from siglip_spec.protocol.files import ResponseSubject, export_prompt, read_response
from siglip_spec.protocol.question import arrays, case_of, keyed, question
from siglip_spec.protocol.tensors import decode, encode
from siglip_spec.suites import PROFILES, load_profile

SPEC = Path(__file__).parents[2] / "spec"
SCHEMAS = SPEC / "siglip_spec" / "schema"
PAGE = SPEC / "PROTOCOL.md"
FLOATS = ("float64", "float32", "bfloat16", "float16")


@pytest.fixture
def versions(monkeypatch):
    """Versions for prompts of the cases above, which belong to no vectors."""
    known = {"spec": "1.0.0", "vectors": "1.0.0", "sha256": "a" * 64}
    monkeypatch.setattr(files, "manifest", lambda: known)
    return known


@pytest.fixture
def answered(versions, tmp_path):
    """A directory with a prompt and the right response to it."""
    export_prompt(CASES, tmp_path, "float32")
    said = {case.id: "ok" if case.rejected is None else "rejected: shapes" for case in CASES}
    (tmp_path / "response.json").write_text(json.dumps(declared(cases=said)))
    tensors = {key: array for case in CASES for key, array in true_tensors(case).items()}
    (tmp_path / "response.safetensors").write_bytes(encode(tensors, "float32"))
    return tmp_path


def prompt_of(directory):
    return json.loads((directory / "prompt.json").read_text())


# ---- prompts ----


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_prompt_holds_the_inputs_and_cotangents_and_nothing_else(versions, tmp_path, dtype):
    export_prompt(CASES, tmp_path, dtype)
    found = decode((tmp_path / "prompt.safetensors").read_bytes(), "prompt")
    want = {key: array for case in CASES for key, array in keyed(case.id, arrays(case)).items()}
    assert found.keys() == want.keys()
    for key, array in want.items():
        np.testing.assert_array_equal(found[key], array)
    assert sorted(os.listdir(tmp_path)) == ["prompt.json", "prompt.safetensors"]


def test_a_prompt_has_the_same_bytes_each_time(versions, tmp_path):
    for name in ("a", "b"):
        export_prompt(CASES, tmp_path / name, "float32")
    for file in files.PROMPT:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_case_to_reject_is_asked_as_any_other():
    asked, other = question(MISFIT), question(VICTIM)
    assert asked.keys() == other.keys()
    assert {k: v for k, v in asked.items() if k != "id"} == {
        k: v for k, v in other.items() if k != "id"
    }


def test_the_prompt_of_the_vectors_does_not_show_which_cases_are_to_reject():
    cases = [case for profile in PROFILES for case in load_profile(profile)]
    bad, good = ([c for c in cases if (c.rejected is None) == fits] for fits in (False, True))
    assert bad
    for case in bad:
        asked = [question(other) for other in good if other.operation == case.operation]
        for key in ("cotangents", "outputs"):
            assert question(case)[key] in [other[key] for other in asked]


def test_a_case_comes_back_from_its_question():
    given_case = case_of(question(FIRST), keyed(FIRST.id, arrays(FIRST)))
    assert (given_case.id, given_case.operation) == (FIRST.id, FIRST.operation)
    assert arrays(given_case).keys() == arrays(FIRST).keys()
    np.testing.assert_equal(arrays(given_case), arrays(FIRST))


@pytest.mark.parametrize("key", ["id", "operation", "attrs", "inputs", "gradients"])
def test_a_question_without_a_key_is_refused(key):
    asked = {name: value for name, value in question(FIRST).items() if name != key}
    with pytest.raises(ValueError, match="a question must have"):
        case_of(asked, keyed(FIRST.id, arrays(FIRST)))


def test_a_prompt_replaces_a_prompt(versions, tmp_path):
    export_prompt(CASES, tmp_path, "float32")
    export_prompt([FIRST], tmp_path, "float64")
    assert [case["id"] for case in prompt_of(tmp_path)["cases"]] == [FIRST.id]


@pytest.mark.parametrize("file", files.PROMPT)
def test_a_prompt_replaces_no_file_of_another_kind(versions, tmp_path, file):
    (tmp_path / file).write_text("mine")
    with pytest.raises(ValueError, match="not replaced"):
        export_prompt(CASES, tmp_path, "float32")
    assert (tmp_path / file).read_text() == "mine"
    assert os.listdir(tmp_path) == [file]


def test_a_prompt_that_was_answered_is_not_replaced_by_another(versions, answered):
    export_prompt(CASES, answered, "float32")
    with pytest.raises(ValueError, match="answers another prompt"):
        export_prompt([FIRST], answered, "float32")
    assert len(prompt_of(answered)["cases"]) == len(CASES)


def test_a_case_comes_once_in_a_prompt(versions, tmp_path):
    with pytest.raises(ValueError, match="twice"):
        export_prompt([FIRST, VICTIM, FIRST], tmp_path, "float32")


def test_a_dtype_that_does_not_exist_is_refused(versions, tmp_path):
    with pytest.raises(ValueError, match=r"dtype must be one of float64, .*'float8'"):
        export_prompt(CASES, tmp_path, "float8")


# ---- responses ----


def edit(directory, **other):
    path = directory / "response.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | other))


def edit_tensors(directory, change):
    path = directory / "response.safetensors"
    path.write_bytes(encode(change(decode(path.read_bytes(), "response")), "float64"))


def test_a_right_response_passes(answered):
    subject = ResponseSubject(read_response(answered))
    assert (subject.name, subject.dtype) == ("acme-rs 0.3", "float32")
    assert_all_passed(statuses(subject))


def test_the_coarser_of_storage_and_accumulation_sets_the_tolerance(answered):
    edit(answered, accumulate="bfloat16")
    assert ResponseSubject(read_response(answered)).dtype == "bfloat16"
    edit(answered, accumulate="float64")
    assert ResponseSubject(read_response(answered)).dtype == "float32"


def test_a_case_without_a_status_fails(answered):
    said = json.loads((answered / "response.json").read_text())["cases"]
    edit(answered, cases={id_: status for id_, status in said.items() if id_ != VICTIM.id})
    found = statuses(ResponseSubject(read_response(answered)))
    assert found[f"{VICTIM.id}[out/loss]"] == ("failed", "the response says nothing of the case")
    assert_all_passed({c: o for c, o in found.items() if not c.startswith(VICTIM.id)})


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("unsupported: no batches of five", ("not claimed", "no batches of five")),
        ("error: out of\n memory", ("failed", "out of memory")),
        ("rejected: too large", ("failed", "raised too large")),
    ],
)
def test_a_status_decides_every_check_of_its_case(answered, status, outcome):
    said = json.loads((answered / "response.json").read_text())["cases"]
    edit(answered, cases=said | {VICTIM.id: status})
    found = statuses(ResponseSubject(read_response(answered)), [VICTIM])
    assert set(found.values()) == {outcome}
    assert len(found) == 5


def test_a_case_to_reject_that_is_answered_fails(answered):
    said = json.loads((answered / "response.json").read_text())["cases"]
    edit(answered, cases=said | {MISFIT.id: "ok"})
    [(status, message)] = statuses(ResponseSubject(read_response(answered)), [MISFIT]).values()
    assert status == "failed"
    assert "accepted inputs" in message


@pytest.mark.parametrize("given_up", ["operations", "gradients"])
def test_what_is_not_declared_is_not_claimed(answered, given_up):
    edit(answered, **{"gradients": [], given_up: []})
    found = statuses(ResponseSubject(read_response(answered)), [VICTIM])
    unclaimed = {check for check, (status, _) in found.items() if status == "not claimed"}
    claimed = {f"{VICTIM.id}[out/loss]"} if given_up == "gradients" else set()
    assert unclaimed == found.keys() - claimed


def test_a_case_beyond_the_prompt_is_not_claimed(answered):
    other = replace(FIRST, id="loss.sigmoid/other")
    found = statuses(ResponseSubject(read_response(answered)), [other])
    assert {status for status, _ in found.values()} == {"not claimed"}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"protocol": 2}, "response.json: protocol must be 1, got 2"),
        ({"subject": " "}, "response.json: subject must be"),
        ({"dtype": "f32"}, "response.json: dtype must be one of .*, got 'f32'"),
        ({"dtype": "float64"}, "response.json: dtype must be the prompt's, float32, got float64"),
        ({"accumulate": "tf32"}, "response.json: accumulate must be one of"),
        ({"operations": ["sigmoid_los"]}, "response.json: operations may be of .*got sigmoid_los$"),
        ({"gradients": ["dense"]}, "response.json: gradients may be of sigmoid_loss, got dense"),
        ({"gradients": "all"}, "response.json: gradients must be a list of operations, got 'all'"),
        ({"cases": []}, "response.json: cases must be an object"),
        ({"cases": {"loss/none": "ok"}}, "response.json: case 'loss/none' is not in the prompt"),
        ({"cases": {VICTIM.id: "fine"}}, "response.json: case '.*plain' must be 'ok', .*'fine'"),
        ({"cases": {VICTIM.id: "error: "}}, "response.json: case '.*plain' must be 'ok'"),
    ],
)
def test_a_malformed_response_is_refused_by_file_and_key(answered, other, message):
    edit(answered, **other)
    with pytest.raises(ValueError, match=message):
        read_response(answered)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("loss/none#out/loss", "'loss/none#out/loss' must be <id>#<name>"),
        ("loss", "'loss' must be <id>#<name>"),
        (f"{VICTIM.id}#out/los", "'.*#out/los' was not asked for; wanted out/loss, grad/dzimg"),
        (f"{VICTIM.id}#in/zimg", "'.*#in/zimg' was not asked for"),
    ],
)
def test_an_array_under_a_wrong_key_is_refused(answered, key, message):
    edit_tensors(answered, lambda tensors: tensors | {key: np.zeros(3)})
    with pytest.raises(ValueError, match=f"response.safetensors: {message}"):
        read_response(answered)


def test_an_intermediate_may_be_given_besides(answered):
    key = f"{VICTIM.id}#probe/logits"
    edit_tensors(answered, lambda tensors: tensors | {key: np.zeros((5, 5))})
    subject = ResponseSubject(read_response(answered))
    assert subject.answer(VICTIM).probe.keys() == {"logits"}


@pytest.mark.parametrize("file", [*files.PROMPT[:1], *files.RESPONSE])
def test_a_missing_file_is_named(answered, file):
    (answered / file).unlink()
    with pytest.raises(ValueError, match=f"{file} cannot be read"):
        read_response(answered)


@pytest.mark.parametrize("file", ["prompt.json", "response.json"])
@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_a_file_that_is_no_json_object_is_named(answered, file, text):
    (answered / file).write_text(text)
    with pytest.raises(ValueError, match=f"{file} (is no JSON|must be a JSON object)"):
        read_response(answered)


def test_a_response_to_other_vectors_is_refused(answered, versions):
    versions["sha256"] = "b" * 64
    with pytest.raises(ValueError, match=r"the vectors of this kit have 'bbb.*export the prompt"):
        read_response(answered)


# ---- the schemas ----


def validator(name, definition=""):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    referencing = pytest.importorskip("referencing")
    schemas = [json.loads(path.read_text()) for path in SCHEMAS.glob("*.schema.json")]
    resources = [(s["$id"], referencing.Resource.from_contents(s)) for s in schemas if "$id" in s]
    registry = referencing.Registry().with_resources(resources)
    reference = {"$ref": f"{name}.schema.json{definition}"}
    return jsonschema.Draft202012Validator(reference, registry=registry)


def test_what_is_written_and_read_fits_the_schemas(answered):
    said = json.loads((answered / "response.json").read_text())
    validator("prompt").validate(prompt_of(answered))
    validator("response").validate(said)
    handshake = {key: value for key, value in said.items() if key != "cases"}
    validator("live", "#/$defs/handshake").validate(handshake)
    asked = question(VICTIM) | {"prompt": "a", "response": "b"}
    validator("live", "#/$defs/question").validate(asked)
    validator("live", "#/$defs/reply").validate({"id": VICTIM.id, "status": "ok"})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("prompt", {"dtype": "f32"}),
        ("prompt", {"cases": [question(FIRST) | {"rejected": "shape"}]}),
        ("response", {"protocol": 2}),
        ("response", {"gradients": None}),
        ("response", {"cases": {FIRST.id: "fine"}}),
    ],
)
def test_the_schemas_refuse_what_the_kit_refuses(answered, name, change):
    said = json.loads((answered / f"{name}.json").read_text())
    assert validator(name).is_valid(said)
    assert not validator(name).is_valid(said | change)


# ---- the page ----


def blocks():
    """The JSON of the page's worked exchange, by what it is."""
    found = re.findall(r"^```json (\S+)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return {name: json.loads(text) for name, text in found}


def test_the_exchange_on_the_page_is_a_true_one():
    page = blocks()
    given = {key: np.asarray(value, float) for key, value in page["prompt"].items()}
    case = case_of(page["question"], given)
    answer = OPERATIONS[case.operation].reference(case.inputs, case.attrs, case.cotangents)
    want = {f"out/{name}": array for name, array in answer.out.items()}
    want |= {f"grad/{name}": array for name, array in answer.grad.items()}
    assert list(want) == [*page["question"]["outputs"], *page["question"]["gradients"]]
    assert list(page["response"]) == list(keyed(case.id, want))
    for key, array in keyed(case.id, want).items():
        np.testing.assert_allclose(page["response"][key], array, rtol=3e-8)


def test_the_file_on_the_page_is_the_one_that_is_written():
    page = blocks()
    given = {key: np.asarray(value, float) for key, value in page["prompt"].items()}
    data = encode(given, "float32")
    length = int.from_bytes(data[:8], "little")
    assert (len(data), length) == (436, 384)
    assert json.loads(data[8 : 8 + length]) == page["header"]
    assert data[8 : 8 + length].endswith(b"}" + 4 * b" ")


def test_the_lines_on_the_page_fit_the_schemas():
    page = blocks()
    for name in ("handshake", "question", "reply"):
        validator("live", f"#/$defs/{name}").validate(page[name])
    validator("live", "#/$defs/reply").validate(page["refusal"])
    validator("response").validate(page["response.json"])
    assert page["response.json"].items() >= page["handshake"].items()
