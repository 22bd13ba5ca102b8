"""How the sources are laid out: packages, names, sizes, docstrings."""

import ast
import re
from pathlib import Path

import pytest

import siglip_ref as sr

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "siglip_ref").rglob("*.py"))
OURS = sorted(
    file for folder in ("siglip_ref", "adapters", "spec") for file in (ROOT / folder).rglob("*.py")
)
PACKAGES = sorted(file.parent.name for file in (ROOT / "siglip_ref").glob("*/__init__.py"))


def relative(file):
    return str(file.relative_to(ROOT))


def functions(file):
    """The public functions a file defines."""
    nodes = ast.parse(file.read_text()).body
    return [
        node
        for node in nodes
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]


OPERATIONS = [
    pytest.param(node, id=f"{relative(file)}:{node.name}")
    for file in CORE
    for node in functions(file)
    if node.name.endswith(("_fwd", "_bwd"))
]


@pytest.mark.parametrize("folder", ["adapters", "spec", "tests", "docs"])
def test_a_source_root_is_no_package(folder):
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("file", OURS, ids=relative)
def test_a_file_has_at_most_400_lines(file):
    assert len(file.read_text().splitlines()) <= 400


@pytest.mark.parametrize("file", OURS, ids=relative)
def test_no_file_is_called_after_nothing(file):
    assert not set(file.relative_to(ROOT).with_suffix("").parts) & {
        *("utils", "util", "helpers", "helper", "common", "misc")
    }


@pytest.mark.parametrize("file", CORE, ids=relative)
def test_shapes_are_checked_at_run_time_so_annotations_are_not_postponed(file):
    assert "from __future__ import annotations" not in file.read_text()


def test_every_forward_pass_has_its_backward_pass_and_the_other_way_round():
    names = {param.values[0].name for param in OPERATIONS}
    assert names
    stems = {name.removesuffix("_fwd") for name in names if name.endswith("_fwd")}
    assert stems == {name.removesuffix("_bwd") for name in names if name.endswith("_bwd")}


@pytest.mark.parametrize("file", CORE, ids=relative)
def test_a_forward_pass_and_its_backward_pass_share_a_file(file):
    names = [node.name for node in functions(file)]
    forward = [name.removesuffix("_fwd") for name in names if name.endswith("_fwd")]
    assert forward == [name.removesuffix("_bwd") for name in names if name.endswith("_bwd")]


@pytest.mark.parametrize("file", CORE, ids=relative)
def test_every_public_function_and_class_of_the_core_says_what_it_is(file):
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


@pytest.mark.parametrize("node", OPERATIONS)
def test_every_operation_states_its_formula_or_its_cotangents(node):
    docstring = ast.get_docstring(node)
    if node.name.endswith("_fwd"):
        assert " = " in docstring or "Source: " in docstring
    else:
        assert " = " in docstring or re.search(r"\(d\w+, d\w+|[Cc]otangents? ", docstring)


@pytest.mark.parametrize(
    "file",
    [file for file in CORE if any(node.name.endswith("_fwd") for node in functions(file))],
    ids=relative,
)
def test_every_file_with_an_operation_names_its_source_or_its_formula(file):
    text = file.read_text()
    assert "Source: " in text or file.stem == "softmax"  # which is its own definition


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_exports_what_it_binds_in_order(name):
    tree = ast.parse((ROOT / "siglip_ref" / name / "__init__.py").read_text())
    bound = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    package = getattr(sr, name)
    exported = package.__all__
    assert bound
    assert set(exported) == bound
    assert len(exported) == len(bound)
    assert all(hasattr(package, public) for public in exported)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_exports_every_operation_of_its_files(name):
    files = (ROOT / "siglip_ref" / name).glob("*.py")
    operations = {
        node.name
        for file in files
        for node in functions(file)
        if node.name.endswith(("_fwd", "_bwd")) or node.name.startswith("tiled_")
    }
    assert operations <= set(getattr(sr, name).__all__)


def test_the_public_names_are_those_of_the_design():
    assert sr.__all__ == [
        "ImageConfig",
        "SiglipConfig",
        "TextConfig",
        "check_params",
        "encode_image",
        "encode_text",
        "encoders",
        "init_params",
        "loss_and_grads",
        "losses",
        "num_params",
        "optim",
        "param_shapes",
        "primitives",
        "prior_bias",
        "probe_image",
        "probe_text",
        "ring",
        "tree",
        "variants",
    ]
    assert all(hasattr(sr, name) for name in sr.__all__)
