"""Reports of a run: text for a terminal, JSON, a static HTML page, JUnit XML, a Markdown table."""

from siglip_spec.report.as_json import from_json, to_json
from siglip_spec.report.junit import junit_xml
from siglip_spec.report.matrix import markdown_table
from siglip_spec.report.page import html_page
from siglip_spec.report.terminal import Style, failure_text, failures_text, summary_text

__all__ = [
    "Style",
    "failure_text",
    "failures_text",
    "from_json",
    "html_page",
    "junit_xml",
    "markdown_table",
    "summary_text",
    "to_json",
]
