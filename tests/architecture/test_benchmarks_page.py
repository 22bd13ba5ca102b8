"""docs/benchmarks.md is what its results say, and says where they fall short."""

import copy

import pytest

from benchmarks.page import PAGE, SECTIONS, Target, load, page

RESULTS = load()
RING_ROW = {"carrier": "mpi", "ranks": 2, "n": 64, "rounds": 1, "one": 2.0, "ring": 1.0}


def with_ring(speedup):
    machine = RESULTS["gradient_error"]["machine"]
    row = RING_ROW | {"speedup": speedup}
    return RESULTS | {"ring": {"machine": machine, "commands": ["it"], "rows": [row]}}


def test_the_page_is_made_from_the_results():
    assert PAGE.read_text() == page(RESULTS)


@pytest.mark.parametrize(("speedup", "cell"), [(1.81, "1.81"), (1.78, "**1.78**")])
def test_a_figure_that_misses_what_was_asked_is_bold_in_its_table_and_at_the_top(speedup, cell):
    of_the_ring = [x for x in page(with_ring(speedup)).splitlines() if "over MPI" in x]
    assert [f"| {cell} |" in line for line in of_the_ring] == [True, True]
    assert ("**no**, 1 of 1 miss it" in of_the_ring[0]) == (speedup < 1.8)


def test_the_worst_figure_of_a_claim_stands_for_it():
    results = with_ring(1.9)
    results["ring"]["rows"].append(RING_ROW | {"n": 128, "speedup": 1.5})
    line = next(x for x in page(results).splitlines() if x.startswith("| speedup of 2"))
    assert "**1.50** | NumPy over MPI, n = 128 | **no**, 1 of 2" in line


def test_figures_are_judged_as_they_are_printed():
    target = Target(high=1.15)
    assert target.shown(1.154) == "1.15"
    assert target.shown(1.156) == "**1.16**"


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_that_was_not_measured_says_so(name):
    rest = {key: section for key, section in RESULTS.items() if key != name}
    title = SECTIONS[name][0]
    assert f"## {title}\n\nNot measured yet." in page(rest)


def test_sections_from_several_machines_name_their_own():
    machine = {"cores": 2, "cpu": "one", "versions": {}}
    results = {
        name: section | {"machine": copy.deepcopy(machine)} for name, section in RESULTS.items()
    }
    assert page(results).count("The machine has") == 1
    results["gradient_error"]["machine"]["cpu"] = "another one"
    text = page(results)
    assert text.count("The machine has") == len(results)
    assert text.count("(another one)") == 1
