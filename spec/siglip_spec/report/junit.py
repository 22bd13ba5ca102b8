"""A report as JUnit XML, which continuous integration reads."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from siglip_spec.report.overview import printable, verdict
from siglip_spec.report.terminal import Style, failure_text
from siglip_spec.runner import Record, Report


def junit_xml(report: Report) -> str:
    """A test suite for each profile, a test case for each check.

    A failure carries the text that the terminal shows. Expected failures and checks that are not
    claimed are skipped, and say which. A report that is not in order without a single failure,
    because nothing was run, has one suite more with an error, so that nobody takes it for passed.
    """
    root = ET.Element("testsuites", name=printable(f"siglip-spec {report.spec_version}"))
    for profile in dict.fromkeys((*report.profiles, *(r.profile for r in report.records))):
        root.append(_suite(report, profile, [r for r in report.records if r.profile == profile]))
    if not report.ok and not report.counts()["failed"]:
        suite = ET.SubElement(root, "testsuite", name="siglip-spec", tests="1", errors="1")
        case = ET.SubElement(
            suite, "testcase", classname="siglip-spec", name="something is checked"
        )
        ET.SubElement(case, "error", message=printable(verdict(report)))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _suite(report: Report, profile: str, records: Sequence[Record]) -> ET.Element:
    failed = sum(record.status == "failed" for record in records)
    passed = sum(record.status == "passed" for record in records)
    suite = ET.Element(
        "testsuite",
        name=printable(profile),
        tests=str(len(records)),
        failures=str(failed),
        errors="0",
        skipped=str(len(records) - failed - passed),
        time=_seconds(sum(record.seconds for record in records)),
    )
    facts = {
        "subject": report.subject,
        "dtype": report.dtype,
        "spec": report.spec_version,
        "vectors": report.vectors_version,
        "vectors sha256": report.vectors_sha256,
        "lambda": f"{report.lam:g}",
        "verdict": verdict(report),
    }
    _properties(suite, facts)
    suite.extend(_case(record) for record in records)
    return suite


def _case(record: Record) -> ET.Element:
    case = ET.Element(
        "testcase",
        classname=printable(record.case.split("/", 1)[0]),
        name=printable(record.check),
        time=_seconds(record.seconds),
    )
    facts = {"clause": " ".join(record.clauses)}
    if record.score is not None:
        facts["score"] = f"{record.score:.6g}"
    if record.suspected is not None:
        facts["suspected"] = record.suspected
    _properties(case, facts)
    if record.status == "failed":
        kind = printable(record.suspected or "failed")
        failure = ET.SubElement(case, "failure", message=printable(record.message), type=kind)
        failure.text = f"\n{failure_text(record, style=Style())}\n"
    elif record.status != "passed":
        message = printable(f"{record.status}: {record.reason or 'no reason given'}")
        ET.SubElement(case, "skipped", message=message)
    return case


def _properties(parent: ET.Element, facts: dict[str, str]) -> None:
    properties = ET.SubElement(parent, "properties")
    for name, value in facts.items():
        ET.SubElement(properties, "property", name=name, value=printable(value))


def _seconds(seconds: float) -> str:
    return f"{seconds if math.isfinite(seconds) else 0:.6f}"
