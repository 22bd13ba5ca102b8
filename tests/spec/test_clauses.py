"""The prose of the specification, its list of clauses, the reference and the kit fit together."""

import importlib
import inspect
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from siglip_spec.cases import DEFINITIONS
from siglip_spec.clauses import CLAUSES, CheckedBy, Level
from siglip_spec.operations import OPERATIONS

SPEC = Path(__file__).parents[2] / "spec"
CHAPTERS = sorted(SPEC.glob("0*.md"))
PROSE = [*CHAPTERS, SPEC / "README.md"]
ANCHORED = re.compile(r'<a id="([a-z]+-\d+)"></a>\n### ([A-Z]+-\d+) — .+\n\n(.+)\n')
FAMILIES = ("ENC", "LOSS", "GRAD", "RING", "TRAIN", "DATA", "NUM", "CONF")
MENTION = re.compile(rf"\b(?:{'|'.join(FAMILIES)})-\d+\b")
PACKAGES = ("primitives", "encoders", "losses", "optim")
FUNCTIONS = [
    f"siglip_ref.{package}.{name}"
    for package in PACKAGES
    for name in importlib.import_module(f"siglip_ref.{package}").__all__
    if inspect.isfunction(getattr(importlib.import_module(f"siglip_ref.{package}"), name))
]


@pytest.fixture(scope="module")
def operations_of_cases():
    """The operations of the kit's cases, by the clauses that the cases name."""
    found = defaultdict(set)
    for cases in DEFINITIONS.values():
        for case in cases():
            for clause in case.clauses:
                found[clause].add(case.operation)
    return dict(found)


def resolve(name):
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_there_are_chapters_and_clauses_and_functions():
    assert [chapter.name[:2] for chapter in CHAPTERS] == [f"{i:02d}" for i in range(1, 8)]
    assert {name.split("-")[0] for name in CLAUSES} == set(FAMILIES)
    assert {name.split(".")[1] for name in FUNCTIONS} == set(PACKAGES)


def test_the_chapters_hold_the_listed_clauses_with_their_sentences_and_no_other():
    found = {
        name: (f"{chapter.name}#{anchor}", sentence)
        for chapter in CHAPTERS
        for anchor, name, sentence in ANCHORED.findall(chapter.read_text("utf-8"))
    }
    assert found == {name: (c.chapter, c.title) for name, c in CLAUSES.items()}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.name)
def test_every_heading_of_a_clause_has_its_anchor_and_sentence(chapter):
    text = chapter.read_text("utf-8")
    headings = re.findall(r"^### (\S+)", text, re.MULTILINE)
    assert headings == [name for _, name, _ in ANCHORED.findall(text)]
    assert all(anchor == name.lower() for anchor, name, _ in ANCHORED.findall(text))


@pytest.mark.parametrize("file", PROSE, ids=lambda path: path.name)
def test_the_prose_mentions_no_clause_that_does_not_exist(file):
    assert set(MENTION.findall(file.read_text("utf-8"))) <= set(CLAUSES)


@pytest.mark.parametrize("file", PROSE, ids=lambda path: path.name)
def test_links_within_the_specification_lead_somewhere(file):
    for target, anchor in re.findall(r"\]\(([\w./-]*\.\w+)?(?:#([\w-]+))?\)", file.read_text()):
        aim = SPEC / target if target else file
        assert aim.exists(), target
        if anchor:
            text = aim.read_text("utf-8")
            headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
            assert anchor in slugs | set(re.findall(r'<a id="([\w-]+)">', text)), anchor


@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_of_a_family_have_no_hole_and_are_in_order(family):
    numbers = [int(name.split("-")[1]) for name in CLAUSES if name.startswith(f"{family}-")]
    assert numbers[0] == 1
    assert all(after == before + 1 for before, after in pairwise(numbers))


@pytest.mark.parametrize("clause", CLAUSES.values(), ids=lambda clause: clause.id)
def test_a_clause_is_one_sentence_that_says_its_level(clause):
    assert clause.level in get_args(Level)
    assert clause.level in clause.title.split()
    assert clause.title.endswith(".")
    assert ". " not in clause.title


@pytest.mark.parametrize("clause", CLAUSES.values(), ids=lambda clause: clause.id)
def test_a_clause_is_testable_or_says_why_not(clause):
    assert clause.checked_by in get_args(CheckedBy)
    assert bool(clause.reason) == (clause.checked_by == "not testable")
    assert bool(clause.operations) == (clause.checked_by == "vectors")


@pytest.mark.parametrize("clause", CLAUSES.values(), ids=lambda clause: clause.id)
def test_the_functions_of_a_clause_exist(clause):
    for name in clause.functions:
        assert name.startswith("siglip_ref.")
        assert callable(resolve(name)), name


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_public_function_of_the_reference_is_governed_by_a_clause(function):
    assert any(function in clause.functions for clause in CLAUSES.values())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_of_the_kit_has_a_clause(operation):
    assert any(operation in clause.operations for clause in CLAUSES.values())


def test_the_operations_of_a_clause_are_those_of_the_cases_that_name_it(operations_of_cases):
    listed = {name: set(c.operations) for name, c in CLAUSES.items() if c.operations}
    assert operations_of_cases == listed


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_table_of_operations_has_every_operation_with_its_inputs(operation):
    text = (SPEC / "07-conformance.md").read_text("utf-8")
    section = text.split("## Operations\n")[1].split("\n## ")[0]
    op = OPERATIONS[operation]
    written = re.search(rf"`{operation}\(([^;)]*)(?:; ([^)]*))?\)`", section)
    assert written, operation
    assert tuple(filter(None, written[1].split(", "))) == op.inputs
    assert set(filter(None, (written[2] or "").split(", "))) == set(op.attrs)
