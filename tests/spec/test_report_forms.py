"""Text, JSON, HTML, JUnit and Markdown say the same of a run, whatever its words are."""

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from hypothesis import given

from made_up_reports import BUG, CASE, REPORTS, of_everything, passing, record, report, wrong
from siglip_spec.report import (
    Style,
    failures_text,
    from_json,
    html_page,
    junit_xml,
    markdown_table,
    summary_text,
    to_json,
)

VOID = {"meta"}
HOSTILE = "<script>alert('x')</script> & \x1b[31m \x00 \ud800\nnew line"


class Elements(HTMLParser):
    """What a page consists of; fails where a tag is not closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts, self.attributes = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def violations(value, schema, root, where="report"):
    """What a value lacks of a schema; of JSON Schema the few words that ours uses."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        yield from violations(value, root["$defs"][name], root, where)
    options = [list(violations(value, o, root, where)) for o in schema.get("anyOf", [])]
    if options and all(options):
        yield f"{where} is none of the alternatives"
    if value not in schema.get("enum", [schema.get("const", value)]):
        yield f"{where} is {value!r}"
    if value is not None and "minimum" in schema and value < schema["minimum"]:
        yield f"{where} is too small"
    if "type" in schema and not is_of_type(value, schema["type"]):
        yield f"{where} is not of type {schema['type']}"
    elif isinstance(value, dict):
        yield from violations_of_object(value, schema, root, where)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from violations(item, schema.get("items", {}), root, f"{where}[{i}]")


def violations_of_object(value, schema, root, where):
    properties = schema.get("properties", {})
    yield from (f"{where} lacks {name}" for name in schema.get("required", []) if name not in value)
    for name, item in value.items():
        if name in properties:
            yield from violations(item, properties[name], root, f"{where}.{name}")
        elif schema.get("additionalProperties") is False:
            yield f"{where} has {name}"


def is_of_type(value, names):
    if isinstance(names, list):
        return any(is_of_type(value, name) for name in names)
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    if names in kinds:
        return isinstance(value, kinds[names])
    kind = int if names == "integer" else int | float
    return isinstance(value, kind) and not isinstance(value, bool)


# --- all forms ------------------------------------------------------------------------------------


@given(REPORTS)
def test_the_counts_are_the_same_in_every_form_and_add_up(any_report):
    counts = any_report.counts()
    assert sum(counts.values()) == any_report.planned == len(any_report.records)
    sentence = (
        f"{any_report.planned} planned = {counts['passed']} passed + {counts['failed']} failed + "
        f"{counts['expected']} expected + {counts['not claimed']} not claimed"
    )
    assert sentence in summary_text(any_report, style=Style()).splitlines()
    assert sentence in Elements(html_page(any_report)).text
    tree = to_json(any_report)
    assert (tree["planned"], tree["counts"]) == (any_report.planned, counts)
    suite = ET.fromstring(junit_xml(any_report)).find("testsuite[@name='loss']")
    assert len(suite.findall("testcase")) == int(suite.get("tests")) == any_report.planned
    assert len(suite.findall("testcase/failure")) == int(suite.get("failures")) == counts["failed"]
    assert len(suite.findall("testcase/skipped")) == int(suite.get("skipped"))
    assert int(suite.get("skipped")) == counts["expected"] + counts["not claimed"]


@pytest.mark.parametrize("records", [[], [record(status="not claimed", reason="nothing provided")]])
def test_a_run_of_nothing_is_loud_in_every_form(records):
    empty = report(*records)
    assert "NOTHING WAS CHECKED" in summary_text(empty, style=Style())
    assert "NOTHING WAS CHECKED" in Elements(html_page(empty)).text
    assert to_json(empty)["ok"] is False
    errors = ET.fromstring(junit_xml(empty)).findall(".//error")
    assert [error.get("message") for error in errors] == [
        "No statement of conformance: nothing was checked."
    ]


def test_hostile_text_stays_text_in_every_form():
    hostile = report(
        wrong(suspected=HOSTILE, findings=(HOSTILE,), clauses=(HOSTILE,)),
        record("out/loss", "failed", message=HOSTILE, case=HOSTILE),
        record(HOSTILE, "expected", reason=HOSTILE),
        record("grad/db", "not claimed", reason=HOSTILE),
        subject=HOSTILE,
    )
    text = summary_text(hostile, verbose=True, style=Style()) + failures_text(
        hostile.records, style=Style()
    )
    assert all(c.isprintable() or c == "\n" for c in text)
    page = html_page(hostile)
    assert "script" not in Elements(page).tags
    assert "<script>alert('x')</script>" in Elements(page).text
    page.encode("utf-8")
    failure = ET.fromstring(junit_xml(hostile).encode("utf-8")).find(".//failure")
    assert "<script>alert('x')</script>" in failure.text
    assert "<script>" not in markdown_table([replace(hostile, profiles=("loss",))])
    json.dumps(to_json(hostile), allow_nan=False)


# --- JSON -----------------------------------------------------------------------------------------


@given(REPORTS)
def test_a_report_comes_back_from_json_as_it_was(any_report):
    text = json.dumps(to_json(any_report), allow_nan=False)
    assert repr(from_json(json.loads(text))) == repr(any_report)


@given(REPORTS)
def test_the_json_is_what_the_schema_describes(any_report):
    schema = json.loads(files("siglip_spec").joinpath("schema/report.schema.json").read_text())
    assert list(violations(to_json(any_report), schema, schema)) == []


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        ({"status": "great"}, "report.records[0].status is 'great'"),
        ({"score": "large"}, "report.records[0].score is none of the alternatives"),
        ({"worst_index": [-1]}, "report.records[0].worst_index is none of the alternatives"),
        ({"findings": "one"}, "report.records[0].findings is not of type array"),
        ({"mood": "good"}, "report.records[0] has mood"),
    ],
)
def test_the_schema_refuses_what_is_no_report(change, violation):
    tree = to_json(report(passing()))
    tree["records"][0] |= change
    schema = json.loads(files("siglip_spec").joinpath("schema/report.schema.json").read_text())
    assert list(violations(tree, schema, schema)) == [violation]


def test_numbers_that_json_does_not_have_are_strings():
    numbers = to_json(report(wrong(score=math.nan, got=math.inf, want=-math.inf)))["records"][0]
    assert [numbers[name] for name in ("score", "got", "want")] == ["NaN", "Infinity", "-Infinity"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "report/2"}, "schema must be 'report/1', got 'report/2'"),
        ({"planned": 99}, "planned must be 1, as in the records, got 99"),
        ({"lam": "eight"}, "lam must be a number, got 'eight'"),
        ({"records": [3]}, r"records\[0\] must be an object, got 3"),
        ({"records": [{}]}, r"records\[0\] has no field 'check'"),
        ({"subject": None}, "subject must be a string, got None"),
    ],
)
def test_json_that_is_no_report_is_refused_by_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        from_json(to_json(report(passing())) | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "great"}, "status must be one of passed, failed, expected, not claimed"),
        ({"worst_index": [0.5]}, r"worst_index\[0\] must be an integer, got 0.5"),
        ({"mood": "good"}, "unknown fields: mood"),
    ],
)
def test_a_record_that_is_none_is_refused_by_the_field(change, message):
    tree = to_json(report(passing()))
    tree["records"][0] |= change
    with pytest.raises(ValueError, match=message):
        from_json(tree)


# --- HTML -----------------------------------------------------------------------------------------


@given(REPORTS)
def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(any_report):
    elements = Elements(html_page(any_report))
    assert not {"script", "link", "img", "iframe", "object"} & set(elements.tags)
    assert not {"src", "href"} & {name for name, _ in elements.attributes}


def test_the_page_shows_failures_before_what_passed_and_all_that_is_known_of_them():
    found = wrong("grad/db", findings=("sign flipped",), suspected=BUG, case="loss.sigmoid/n3")
    text = Elements(html_page(report(passing(), found))).text
    details = text[text.index("LOSS-3") :]
    assert details.index("loss.sigmoid/n3[grad/db]") < details.index(CASE)
    for fact in ("-1.3021e-05", "-9.1147e-05", "[3, 1]", "sign flipped", BUG):
        assert fact in details
    assert "siglip-spec repro loss.sigmoid/n3" in details


def test_the_page_follows_the_colours_and_the_width_of_the_reader():
    page = html_page(report(passing()))
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert "url(" not in page
    assert "@import" not in page


# --- JUnit ----------------------------------------------------------------------------------------


def test_junit_has_a_case_for_every_check_by_suite_with_its_facts():
    root = ET.fromstring(junit_xml(report(wrong(suspected=BUG, clauses=("LOSS-3", "GRAD-1")))))
    case = root.find("testsuite[@name='loss']/testcase")
    assert case.get("classname") == "loss.sigmoid"
    assert case.get("name") == f"{CASE}[grad/dzimg]"
    facts = {p.get("name"): p.get("value") for p in case.findall("properties/property")}
    assert facts == {"clause": "LOSS-3 GRAD-1", "score": "71000", "suspected": BUG}
    assert "want -9.1147e-05" in case.find("failure").text


def test_junit_skips_with_the_kind_and_the_reason():
    root = ET.fromstring(junit_xml(of_everything()))
    assert [skipped.get("message") for skipped in root.findall(".//skipped")] == [
        "expected: no tiles, acme#12",
        "not claimed: softmax_loss is not provided",
    ]


def test_junit_has_a_suite_for_every_profile_even_an_empty_one():
    root = ET.fromstring(junit_xml(report(passing(), profiles=("loss", "ring"))))
    assert [s.get("name") for s in root.findall("testsuite")] == ["loss", "ring"]


# --- several reports ------------------------------------------------------------------------------


def test_the_matrix_has_implementations_as_rows_and_profiles_as_columns():
    ring = report(wrong(profile="ring"), profiles=("ring",))
    other = report(passing(), passing("out/loss", 0.3), subject="other|1 <b>")
    lines = markdown_table([ring, of_everything(), other]).splitlines()
    assert lines[:4] == [
        "| implementation | dtype | loss | ring |",
        "| --- | --- | --- | --- |",
        "| acme 2.1 | float32 | ✗ 2/7 · 7.1e+04, 1 not claimed, 1 expected failure<sup>1</sup> "
        "| ✗ 0/1 · 7.1e+04 |",
        "| other\\|1 &lt;b&gt; | float32 | 2/2 · 0.30 | – |",
    ]
    assert "1. no tiles, acme#12" in lines


def test_the_same_reason_is_one_footnote():
    expected = record(status="expected", reason="acme#12")
    table = markdown_table([report(expected), report(expected, subject="other")])
    assert table.count("<sup>1</sup>") == 2
    assert table.count("acme#12") == 1


def test_a_refusal_has_no_score():
    assert "| 1/1 |" in markdown_table([report(record("rejected"))])


def test_a_profile_of_which_nothing_was_run_is_not_claimed():
    assert "| not claimed |" in markdown_table([report(record(status="not claimed", reason="r"))])


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        ([], "reports must not be empty"),
        ([report(), report(vectors_version="2.0.0")], "must be of one version"),
        ([report(lam=16.0)], "lam must be 8 in every report, got 16"),
        ([report(), report()], "two reports of 'acme 2.1' on loss"),
    ],
)
def test_reports_that_do_not_belong_together_are_refused(reports, message):
    with pytest.raises(ValueError, match=message):
        markdown_table(reports)
