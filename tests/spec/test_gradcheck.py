"""The check of a user's own gradient against the slopes of the user's own function."""

import numpy as np
import pytest

from siglip_spec import check_gradients
from siglip_spec.gradcheck import inputs_from, table
from siglip_spec.gradients_of import check_object

INPUTS = inputs_from({"x": (3, 4), "w": (4, 2)})


def product(inputs):
    return {"out": np.tanh(inputs["x"] @ inputs["w"])}


def product_bwd(inputs, cotangents):
    out = product(inputs)["out"]
    dlogits = cotangents["out"] * (1 - out**2)
    return {"dx": dlogits @ inputs["w"].T, "dw": inputs["x"].T @ dlogits}


def spoiled(change):
    def backward(inputs, cotangents):
        gradients = product_bwd(inputs, cotangents)
        return {**gradients, "dw": change(gradients["dw"])}

    return backward


def one_element_off(dw):
    wrong = dw.copy()
    wrong[2, 1] += 1e-5
    return wrong


def test_a_right_gradient_passes():
    records = check_gradients(product, product_bwd, INPUTS, ("x", "w"))
    assert [record.name for record in records] == ["dx", "dw"]
    assert all(record.passed for record in records)
    assert [record.elements for record in records] == [12, 8]


@pytest.mark.parametrize(
    "change", [lambda dw: -dw, lambda dw: dw / 3, lambda dw: dw * 0, lambda dw: dw * np.nan]
)
def test_a_wrong_gradient_fails_and_the_others_do_not(change):
    dx, dw = check_gradients(product, spoiled(change), INPUTS, ("x", "w"))
    assert dx.passed
    assert not dw.passed


def test_one_wrong_element_is_found_and_named():
    _, dw = check_gradients(product, spoiled(one_element_off), INPUTS, ("x", "w"))
    assert dw.worst_index == (2, 1)
    assert "FAIL at [2, 1]: got " in table([dw])


def test_a_constant_factor_shows_in_the_table():
    _, dw = check_gradients(product, spoiled(lambda dw: dw / 4), INPUTS, ("x", "w"))
    assert "factor 0.25" in table([dw])


def test_trees_are_checked_leaf_by_leaf():
    def forward(inputs):
        return {"out": inputs["params"]["a"] * inputs["params"]["b"]}

    def backward(inputs, cotangents):
        a, b = inputs["params"]["a"], inputs["params"]["b"]
        return {"dparams/a": cotangents["out"] * b, "dparams/b": cotangents["out"] * a}

    params = inputs_from({"a": (2, 3), "b": (2, 3)})
    records = check_gradients(forward, backward, {"params": params}, ("params",))
    assert [(r.name, r.passed) for r in records] == [("dparams/a", True), ("dparams/b", True)]


def test_float32_is_refused_with_the_reason():
    def narrow(inputs):
        return {"out": product(inputs)["out"].astype(np.float32)}

    with pytest.raises(TypeError, match=r"float64 only, but out came back in float32: central"):
        check_gradients(narrow, product_bwd, INPUTS, ("x", "w"))


def test_a_gradient_that_is_missing_or_misshapen_is_an_error():
    with pytest.raises(ValueError, match="gradient dw is missing; there are dx"):
        check_gradients(product, lambda *_: {"dx": np.zeros((3, 4))}, INPUTS, ("x", "w"))
    with pytest.raises(ValueError, match=r"dw must have the shape \(4, 2\), got \(2, 4\)"):
        check_gradients(product, spoiled(np.transpose), INPUTS, ("x", "w"))


# --- the command's way to it ----------------------------------------------------------------------

LOSS = """
import numpy as np

def sigmoid_loss(zimg, ztxt, t_prime, b):
    logits = np.exp(t_prime) * zimg @ ztxt.T + b
    return np.sum(np.logaddexp(0, -(2 * np.eye(len(zimg)) - 1) * logits)) / len(zimg)

def sigmoid_loss_bwd(zimg, ztxt, t_prime, b, dloss):
    t, cosine, y = np.exp(t_prime), zimg @ ztxt.T, 2 * np.eye(len(zimg)) - 1
    g = -dloss * y / (1 + np.exp(y * (t * cosine + b))) / len(zimg)
    return t * g @ ztxt, t * g.T @ zimg, np.sum(g * cosine){factor}, np.sum(g)

def cube(x, y):
    return x**3 * y

def cube_gradient(x, y, dout):
    return 3 * x**2 * y * dout, np.sum(x**3 * dout){scale}

def alone(x):
    return x
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    def write(factor=" * t", scale=""):
        text = LOSS.replace("{factor}", factor).replace("{scale}", scale)
        (tmp_path / "acme.py").write_text(text)
        return "acme.py"

    monkeypatch.chdir(tmp_path)
    return write


def test_a_loss_and_its_bwd_are_found_by_name(module):
    text, passed = check_object(f"{module()}:sigmoid_loss", None, None, [])
    assert passed
    assert "every element is the slope" in text


def test_dt_for_dt_prime_is_found(module):
    text, passed = check_object(f"{module(factor='')}:sigmoid_loss", None, None, [])
    assert not passed
    (line,) = [line for line in text.splitlines() if "FAIL" in line]
    assert line.startswith("dt_prime")


def test_any_function_can_be_checked_with_given_shapes(module):
    for scale, right in (("", True), (" / 2", False)):
        file = module(scale=scale)
        text, passed = check_object(f"{file}:cube", f"{file}:cube_gradient", None, ["x=3,2", "y="])
        assert passed is right
        assert ("factor 0.5" in text) is not right


def test_what_cannot_be_checked_says_what_it_lacks(module):
    file = module()
    for arguments, message in (
        ((f"{file}:alone", None, None, ["x=3"]), "needs a gradient"),
        ((f"{file}:cube", f"{file}:cube_gradient", None, []), "has not the arguments of"),
        ((f"{file}:cube", f"{file}:cube_gradient", None, ["x=a"]), "write a shape as NAME=7,5"),
        ((f"{file}:cube", f"{file}:cube_gradient", None, ["z=3"]), "has no argument z"),
        ((f"{file}:cube", f"{file}:cube_gradient", "cube", []), "operation must be one of"),
        ((f"{file}:nothing", None, None, []), "has no 'nothing'"),
        (("nowhere:x", None, None, []), "there is no module 'nowhere'"),
        (("nowhere.py:x", None, None, []), "there is no file 'nowhere.py'"),
        (("acme", None, None, []), "write it as package.module:name"),
    ):
        with pytest.raises(ValueError, match=message):
            check_object(*arguments)
