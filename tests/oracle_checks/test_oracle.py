"""The oracle against values and slopes worked out on paper."""

import ast
import sys
from functools import partial
from pathlib import Path

import pytest

from siglip_spec import oracle
from siglip_spec.oracle import exact, gradient, reals, value

LOG2, LOG3 = reals.log(2), reals.log(3)
IDENTITY = [[1.0, 0.0], [0.0, 1.0]]
ZERO = [[0.0, 0.0], [0.0, 0.0]]


def close(got, want, tolerance="1e-37"):
    """Whether two trees agree to the tolerance, relative to the wanted number or to 1."""
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(
            close(got[name], want[name], tolerance) for name in want
        )
    if isinstance(want, list):
        return len(got) == len(want) and all(
            close(a, b, tolerance) for a, b in zip(got, want, strict=True)
        )
    return abs(got - want) <= reals.mpf(tolerance) * max(1, abs(want))


def test_the_oracle_imports_mpmath_and_the_standard_library_only():
    imported = set()
    for path in Path(oracle.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{path.name} imports from outside the oracle"
                if node.level == 0:
                    imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == {"mpmath"}


def test_a_float_is_taken_at_its_own_value():
    assert exact(0.1) == 0.1
    assert exact(0.1) != reals.mpf("0.1")


def test_sums_refuse_floats():
    with pytest.raises(TypeError, match="exact numbers, got float"):
        oracle.dense([[1.0, 2.0]], [[0.5], [0.5]], [0.0])


def test_a_root_of_zero_that_moves_has_no_derivative():
    with pytest.raises(ZeroDivisionError):
        gradient(oracle.numbers.sqrt, {"x": 0.0}, 1.0)


def test_dual_numbers_compare_by_value():
    one, two = oracle.dual.Dual(reals.mpf(1), reals.mpf(5)), oracle.dual.Dual(reals.mpf(2), 0)
    assert one < two <= 2
    assert two > one >= 1
    assert one == 1 != two


def test_dense_multiplies_rows_by_columns_and_adds_the_bias():
    inputs = {"x": [[1.0, 2.0]], "kernel": [[3.0, 4.0], [5.0, 6.0]], "bias": [10.0, 20.0]}
    assert value(oracle.dense, inputs) == [[23, 36]]


def test_layer_norm_divides_by_the_root_of_the_biased_variance_plus_eps():
    inputs = {"x": [[1.0, 3.0]], "scale": [2.0, 4.0], "bias": [1.0, 1.0], "eps": 3.0}
    assert value(oracle.layer_norm, inputs) == [[0, 3]]  # mean 2, variance 1, root of 1 + 3


def test_layer_norm_of_a_constant_row_is_the_bias():
    inputs = {"x": [[7.0, 7.0]], "scale": [2.0, 4.0], "bias": [0.5, 0.25], "eps": 1e-6}
    assert value(oracle.layer_norm, inputs) == [[0.5, 0.25]]


def test_gelu_has_the_odd_part_half_x_and_its_published_value_at_one():
    plus, minus = value(oracle.gelu_tanh, {"x": [1.0, -1.0]})
    assert close(plus - minus, 1)
    assert close(plus, reals.mpf("0.8411919906"), "1e-10")
    assert value(oracle.gelu_tanh, {"x": [0.0]}) == [0]


def test_softmax_of_zero_and_log_three_is_a_quarter_and_three_quarters():
    assert close(oracle.softmax([reals.zero, LOG3]), [reals.mpf("0.25"), reals.mpf("0.75")])


def test_softplus_is_log_two_at_zero_and_exponential_far_below():
    assert close(value(oracle.softplus, {"x": [0.0]}), [LOG2])
    (tail,) = value(oracle.softplus, {"x": [-1000.0]})
    assert close(tail / reals.exp(-1000), 1)
    assert value(oracle.softplus, {"x": [1e4]}) == [10**4]


def test_sigmoid_of_log_three_is_three_quarters_with_slope_three_sixteenths():
    assert close(oracle.sigmoid([LOG3]), [reals.mpf("0.75")])
    slope = gradient(oracle.sigmoid, {"x": [LOG3]}, [1.0])
    assert close(slope, {"x": [reals.mpf(3) / 16]})
    assert close(oracle.log_sigmoid([LOG3]), [LOG3 - 2 * LOG2])


def test_l2_normalize_adds_eps_to_the_norm():
    got = value(oracle.l2_normalize, {"x": [[3.0, 4.0]], "eps": 5.0})
    assert close(got, [[reals.mpf("0.3"), reals.mpf("0.4")]])


def test_l2_normalize_of_a_zero_vector_is_zero_with_slope_one_over_eps():
    function, inputs = partial(oracle.l2_normalize, eps=0.25), {"x": [[0.0, 0.0]]}
    assert value(function, inputs) == [[0, 0]]
    assert gradient(function, inputs, [[1.0, -3.0]]) == {"x": [[4, -12]]}


def test_attention_weighs_values_by_scaled_products():
    # k = 4, so logits are halved products: 0 and log 3, weights 1/4 and 3/4
    query = [[[[2.0, 0.0, 0.0, 0.0]]]]
    key = [[[[0.0] * 4, [LOG3, 0.0, 0.0, 0.0]]]]
    values = [[[[8.0, 0.0, 4.0, 1.0], [4.0, 0.0, 0.0, 1.0]]]]
    got = value(oracle.dot_product_attention, {"query": query, "key": key, "value": values})
    assert close(got, [[[[5, 0, 1, 1]]]])


def test_heads_own_contiguous_columns():
    # query is the constant (log 3, 0): head 0 weighs its keys 0 and 1 as 1/4 to 3/4, head 1 evenly
    params = {
        "query": {"kernel": ZERO, "bias": [LOG3, 0.0]},
        "key": {"kernel": IDENTITY, "bias": [0.0, 0.0]},
        "value": {"kernel": IDENTITY, "bias": [0.0, 0.0]},
        "out": {"kernel": IDENTITY, "bias": [100.0, 0.0]},
    }
    inputs = {"x": [[[5.0, 5.0]]], "y": [[[0.0, 10.0], [1.0, 20.0]]], "params": params}
    got = value(partial(oracle.multi_head_attention, num_heads=2), inputs)
    assert close(got, [[[reals.mpf("100.75"), 15]]])


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 2 is not a multiple of num_heads 3"):
        oracle.multi_head_attention([], [], exact({"query": {"bias": [0.0, 0.0]}}), 3)


def test_patches_go_row_by_row_and_drop_trailing_pixels():
    image = [[[5.0 * row + column] for column in range(5)] for row in range(3)]
    inputs = {"images": [image], "kernel": [[1.0], [10.0], [100.0], [1000.0]], "bias": [0.5]}
    assert value(oracle.patch_embed, inputs) == [[[6510.5], [8732.5]]]


def test_pixels_of_a_patch_are_in_row_column_channel_order():
    image = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]
    kernel = [[float(10**power)] for power in range(8)]
    inputs = {"images": [image], "kernel": kernel, "bias": [0.0]}
    assert value(oracle.patch_embed, inputs) == [[[87654321]]]


def test_embed_looks_tokens_up_and_refuses_unknown_ones():
    assert oracle.embed([[2, 0]], [[1], [2], [3]]) == [[[3], [1]]]
    with pytest.raises(IndexError, match="token 3 is outside a vocabulary of 3"):
        oracle.embed([[3]], [[1], [2], [3]])


def pass_through_params():
    """A block whose attention adds (10, 20) and whose mlp adds gelu of the normed middle."""
    identity = {"kernel": IDENTITY, "bias": [0.0, 0.0]}
    return {
        "ln_0": {"scale": [1.0, 1.0], "bias": [0.0, 0.0]},
        "attn": {
            "query": identity,
            "key": identity,
            "value": {"kernel": ZERO, "bias": [10.0, 20.0]},
            "out": identity,
        },
        "ln_1": {"scale": [1.0, 1.0], "bias": [0.0, 0.0]},
        "mlp": {"dense_0": identity, "dense_1": identity},
    }


def test_a_block_adds_attention_and_then_the_mlp_of_the_normed_sum():
    inputs = {"x": [[[1.0, 2.0]]], "params": pass_through_params()}
    got = value(partial(oracle.block, num_heads=1, eps=0.0), inputs)
    low, high = value(oracle.gelu_tanh, {"x": [-1.0, 1.0]})
    assert close(got, [[[11 + low, 22 + high]]])  # middle (11, 22) normalises to (-1, 1)


def test_the_map_head_adds_no_probe_and_norms_before_its_mlp():
    block = pass_through_params()
    params = {"probe": [[7.0, 9.0]], "attn": block["attn"], "ln": block["ln_1"]}
    params["mlp"] = block["mlp"]
    inputs = {"tokens": [[[1.0, 2.0], [3.0, 4.0]]], "params": params}
    got = value(partial(oracle.map_head, num_heads=1, eps=0.0), inputs)
    low, high = value(oracle.gelu_tanh, {"x": [-1.0, 1.0]})
    assert close(got, [[10 + low, 20 + high]])


def test_the_text_tower_pools_the_last_position_and_may_lack_a_head():
    params = {
        "embed": {"embedding": [[0.0, 5.0], [9.0, 1.0]]},
        "pos_embedding": [[0.0, 0.0], [-6.0, 0.0]],
        "block": {},
        "encoder_norm": {"scale": [3.0, 4.0], "bias": [0.0, 0.0]},
    }
    function = partial(oracle.text_tower, num_heads=1, eps=0.0, norm_eps=0.0)
    last = value(function, {"tokens": [[0, 1]], "params": params})  # (3, 1): normed (1, -1)
    assert close(last, [[reals.mpf("0.6"), reals.mpf("-0.8")]])
    params["head"] = {"kernel": [[1.0], [1.0]], "bias": [-1.0]}  # 3 - 4 - 1 = -2
    assert close(value(function, {"tokens": [[0, 1]], "params": params}), [[-1]])


def test_the_image_tower_sums_patches_and_positions_before_its_blocks():
    block = pass_through_params()
    head = {"probe": [[0.0, 0.0]], "attn": dict(block["attn"]), "ln": block["ln_1"]}
    head["attn"]["value"] = {"kernel": IDENTITY, "bias": [0.0, 0.0]}
    head["mlp"] = {"dense_0": block["mlp"]["dense_0"], "dense_1": {"kernel": ZERO}}
    head["mlp"]["dense_1"]["bias"] = [0.0, 0.0]
    params = {
        "patch_embed": {"kernel": [[1.0, 2.0]], "bias": [0.0, 1.0]},
        "pos_embedding": [[4.0, 0.0], [0.0, 0.0]],
        "block": {},
        "encoder_norm": {"scale": [1.0, 1.0], "bias": [3.0, 0.0]},
        "map_head": head,
    }
    function = partial(oracle.image_tower, num_heads=1, eps=0.0, norm_eps=0.0)
    # tokens (1, 3) + (4, 0) and (2, 5), normed (1, -1) and (-1, 1), plus (3, 0); the zero probe
    # averages them to (3, 0)
    got = value(function, {"images": [[[[1.0], [2.0]]]], "params": params})
    assert close(got, [[1, 0]])


def test_blocks_run_in_the_order_of_their_names():
    doubling, shifting = pass_through_params(), pass_through_params()
    for params, bias in ((doubling, 1.0), (shifting, 5.0)):
        params["mlp"] = {
            "dense_0": {"kernel": ZERO, "bias": [0.0, 0.0]},
            "dense_1": {"kernel": ZERO, "bias": [0.0, 0.0]},
        }
        params["attn"]["value"] = {"kernel": IDENTITY, "bias": [bias, 0.0]}
    params = {"encoder_norm": {"scale": [1.0, 1.0], "bias": [0.0, 0.0]}}
    forward = {**params, "block": {"00": doubling, "01": shifting}}
    shuffled = {**params, "block": {"01": shifting, "00": doubling}}
    function = partial(oracle.encoder, num_heads=1, eps=1.0)
    x = [[[0.0, 3.0], [1.0, 1.0]]]
    assert value(function, {"x": x, "params": forward}) == value(
        function, {"x": x, "params": shuffled}
    )
    swapped = {**params, "block": {"00": shifting, "01": doubling}}
    assert value(function, {"x": x, "params": forward}) != value(
        function, {"x": x, "params": swapped}
    )


PAIRS = {"zimg": IDENTITY, "ztxt": IDENTITY, "t_prime": reals.log(LOG3)}  # cosines 1, 0; t = log 3
QUARTER = reals.mpf("0.25")


def test_the_sigmoid_loss_of_one_pair_is_softplus_of_its_negative_logit():
    inputs = {"zimg": [[0.5]], "ztxt": [[0.5]], "t_prime": reals.log(8), "b": 3.0}
    assert close(value(oracle.sigmoid_loss, inputs), reals.log(1 + reals.exp(-5)))


def test_the_sigmoid_loss_sums_over_texts_and_averages_over_images():
    inputs = {"zimg": [[0.0]] * 3, "ztxt": [[0.0]] * 3, "t_prime": 0.0, "b": 0.0}
    assert close(value(oracle.sigmoid_loss, inputs), 3 * LOG2)


def test_the_sigmoid_loss_of_two_orthogonal_pairs_and_its_slopes():
    # two positives with logit log 3, nll log(4/3); two negatives with logit 0, nll log 2
    inputs = {**PAIRS, "b": 0.0}
    assert close(value(oracle.sigmoid_loss, inputs), 3 * LOG2 - LOG3)
    slopes = gradient(oracle.sigmoid_loss, inputs, 1.0)
    # the logits' slopes: -1/8 on the diagonal, 1/4 beside it
    assert close(slopes["b"], QUARTER)
    assert close(slopes["t_prime"], -LOG3 / 4)
    assert close(slopes["zimg"], [[-LOG3 / 8, LOG3 / 4], [LOG3 / 4, -LOG3 / 8]])
    assert close(slopes["ztxt"], slopes["zimg"])


def test_a_soft_label_of_the_sigmoid_loss_mixes_both_sides():
    inputs = {"zimg": [[1.0]], "ztxt": [[1.0]], "t_prime": 0.0, "b": LOG3 - 1, "labels": [[0.0]]}
    assert close(value(oracle.sigmoid_loss, inputs), (2 * LOG2 - LOG3 + 2 * LOG2) / 2)


def test_weights_and_total_of_the_sigmoid_loss_scale_its_pairs():
    inputs = {"zimg": [[0.0]], "ztxt": [[0.0]] * 3, "t_prime": 0.0, "b": LOG3}
    inputs |= {"labels": [[-1.0] * 3], "weights": [[0.0, 2.0, 5.0]], "total": 7}
    assert close(value(oracle.sigmoid_loss, inputs), 2 * LOG2)  # softplus(log 3) = log 4


def test_at_the_initial_bias_a_negative_pair_has_slope_sigmoid_of_minus_ten():
    inputs = {"zimg": [[0.0]], "ztxt": [[0.0]], "t_prime": 0.0, "b": -10.0}
    slopes = gradient(partial(oracle.sigmoid_loss, labels=[[-1]]), inputs, 1.0)
    assert close(slopes["b"] * (1 + reals.exp(10)), 1)


def test_the_softmax_loss_of_equal_logits_is_log_n():
    inputs = {"zimg": [[0.0]] * 3, "ztxt": [[0.0]] * 3, "t_prime": 0.0}
    assert close(value(oracle.softmax_loss, inputs), LOG3)


def test_the_softmax_loss_of_two_orthogonal_pairs_and_its_slopes():
    # every row and column has logits log 3 and 0, shares 3/4 and 1/4
    assert close(value(oracle.softmax_loss, PAIRS), 2 * LOG2 - LOG3)
    slopes = gradient(oracle.softmax_loss, PAIRS, 1.0)
    # the logits' slopes: (3/4 - 1)/2 on the diagonal, (1/4)/2 beside it
    assert close(slopes["t_prime"], -LOG3 / 4)
    assert close(slopes["zimg"], [[-LOG3 / 8, LOG3 / 8], [LOG3 / 8, -LOG3 / 8]])


def test_a_column_without_positives_adds_nothing_to_the_softmax_loss():
    inputs = {"zimg": [[0.0]] * 2, "ztxt": [[0.0]] * 3, "t_prime": 0.0}
    assert close(value(oracle.softmax_loss, inputs), (LOG3 + 2 * LOG2 / 3) / 2)


def test_several_positives_of_the_softmax_loss_share_their_row():
    inputs = {"zimg": [[LOG3]], "ztxt": [[0.0], [1.0]], "t_prime": 0.0, "labels": [[1.0, 1.0]]}
    # image to text: -(log 1/4 + log 3/4)/2; text to image: one image each, nothing to lose
    assert close(value(oracle.softmax_loss, inputs), (2 * LOG2 - LOG3 / 2) / 2)


def test_weights_of_the_softmax_loss_scale_both_the_positives_and_the_competition():
    inputs = {"zimg": [[0.0]], "ztxt": [[0.0]] * 2, "t_prime": 0.0, "labels": [[1.0, -1.0]]}
    inputs["weights"] = [[2.0, 6.0]]
    # row: logit 0 against log(2 + 6); first column: 0 against log 2; averaged over two columns
    assert close(value(oracle.softmax_loss, inputs), (3 * LOG2 + LOG2 / 2) / 2)
