"""A checkpoint is whole or absent, reads back bit for bit, and says what is wrong with it."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

import siglip_ref as sr
from siglip_train.checkpoints import (
    CheckpointError,
    keep_newest,
    latest_checkpoint,
    load_checkpoint,
    load_latest,
    params_from_big_vision,
    params_to_huggingface,
    save_checkpoint,
    step_path,
)

TREES = {"params": {"a": {"kernel": np.arange(6.0).reshape(2, 3)}, "b": np.float32(2.5)}}
ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.uint32]),
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
)
NAMES = st.text("abcdefgh_0123", min_size=1, max_size=5)
TREE_STRATEGY = st.dictionaries(
    NAMES,
    st.recursive(ARRAYS, lambda tree: st.dictionaries(NAMES, tree, max_size=3), max_leaves=5),
    max_size=3,
)


def structure(tree):
    """The nested keys of a tree, with None at the leaves."""
    return {k: structure(v) for k, v in tree.items()} if isinstance(tree, dict) else None


@given(trees=TREE_STRATEGY)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_read_has_the_bits_dtypes_and_shapes_of_what_was_written(tmp_path, trees):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, trees, {"step": 3, "note": "ü"})
    back, metadata = load_checkpoint(path)
    assert metadata == {"step": 3, "note": "ü"}
    assert structure(back) == structure(trees)
    wanted, found = sr.tree.flatten(trees), sr.tree.flatten(back)
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        assert found[name].dtype == leaf.dtype
        assert found[name].shape == leaf.shape
        assert found[name].tobytes() == leaf.tobytes()


def test_arrays_in_any_memory_order_and_byte_order_are_written_by_value(tmp_path):
    values = np.arange(6.0).reshape(2, 3)
    for array in (values.T, np.asfortranarray(values), values[:, ::2], values.astype(">f8")):
        save_checkpoint(tmp_path / "x.safetensors", {"a": array}, {})
        back = load_checkpoint(tmp_path / "x.safetensors")[0]["a"]
        np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("leaf", [None, "text", np.ones(2, complex), np.array([{}])])
def test_a_leaf_that_is_no_array_of_numbers_is_refused_by_path(tmp_path, leaf):
    with pytest.raises(TypeError, match="optimizer/m must be an array of numbers"):
        save_checkpoint(tmp_path / "x.safetensors", {"optimizer": {"m": leaf}}, {})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["a/b", "", 3])
def test_a_key_that_cannot_stand_in_a_path_is_refused(tmp_path, key):
    with pytest.raises(ValueError, match=r"keys must be .* 'optimizer/'"):
        save_checkpoint(tmp_path / "x.safetensors", {"optimizer": {key: np.ones(1)}}, {})


def test_metadata_that_json_cannot_hold_is_refused(tmp_path):
    for value in (float("nan"), {1, 2}):
        with pytest.raises((ValueError, TypeError), match="JSON"):
            save_checkpoint(tmp_path / "x.safetensors", TREES, {"loss": value})
    assert not any(tmp_path.iterdir())


def test_the_same_trees_give_the_same_bytes(tmp_path):
    contents = set()
    for number in range(5):
        path = tmp_path / f"{number}.safetensors"
        save_checkpoint(path, TREES, {"step": 1, "epoch": 2, "seed": 3})
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_a_write_that_fails_leaves_the_old_file_and_nothing_that_looks_like_a_checkpoint(
    tmp_path, monkeypatch
):
    path = step_path(tmp_path, 5)
    save_checkpoint(path, TREES, {"step": 5})
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="disk full"):
                save_checkpoint(path, {"params": {"a": np.zeros(9)}}, {"step": 5})
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


KILLED_BEFORE_THE_RENAME = """
import os, pathlib, signal, sys
import numpy as np
from siglip_train.checkpoints import save_checkpoint, step_path

os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
save_checkpoint(step_path(pathlib.Path(sys.argv[1]), 6), {"params": {"a": np.zeros(9)}}, {})
"""


def test_a_process_killed_while_it_writes_leaves_the_old_checkpoint_the_newest(tmp_path):
    path = step_path(tmp_path, 5)
    save_checkpoint(path, TREES, {"step": 5})
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_THE_RENAME, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert latest_checkpoint(tmp_path) == path
    assert load_latest(tmp_path)[1] == {"step": 5}
    save_checkpoint(step_path(tmp_path, 7), TREES, {"step": 7})
    keep_newest(tmp_path, 2)
    assert sorted(tmp_path.iterdir()) == [path, step_path(tmp_path, 7)]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoint .*absent\.safetensors does not exist"):
        load_checkpoint(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="or is no file"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    path = tmp_path / "cut.safetensors"
    save_checkpoint(path, TREES, {"step": 1})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors cannot be read"):
        load_checkpoint(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "picture.safetensors"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    with pytest.raises(CheckpointError, match=r"picture\.safetensors cannot be read"):
        load_checkpoint(path)


def test_a_flipped_bit_anywhere_in_the_file_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, TREES, {"step": 1})
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"checkpoint .*x\.safetensors"):
            load_checkpoint(path)


def test_flipped_bits_of_the_tensors_are_called_corruption(tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, TREES, {"step": 1})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="corrupt"):
        load_checkpoint(path)


def test_a_file_with_numbers_that_numpy_has_not_is_refused(tmp_path):
    header = b'{"logit_scale":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(CheckpointError, match=r"model\.safetensors .* no BF16, as logit_scale is"):
        load_checkpoint(path)


def test_a_foreign_checkpoint_is_refused_with_a_hint(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"logit_scale": np.zeros(1), "logit_bias": np.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"2 tensors \(logit_bias, logit_scale.*--init-from"):
        load_checkpoint(path)


def test_the_newest_checkpoints_are_kept_by_step_not_by_name_or_age(tmp_path):
    for step in (100_000_000, 20, 3):
        save_checkpoint(step_path(tmp_path, step), TREES, {"step": step})
    assert load_latest(tmp_path)[1]["step"] == 100_000_000
    keep_newest(tmp_path, 2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["step-00000020.safetensors", "step-100000000.safetensors"]
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        keep_newest(tmp_path, 0)


def test_a_corrupt_newest_checkpoint_is_an_error_that_names_an_intact_one(tmp_path):
    for step in (2, 4):
        save_checkpoint(step_path(tmp_path, step), TREES, {"step": step})
    step_path(tmp_path, 4).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"00000004.*00000002\.safetensors is intact"):
        load_latest(tmp_path)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_latest(tmp_path)


CONFIG = sr.SiglipConfig(
    image=sr.ImageConfig(image_size=9, patch_size=4, width=12, depth=3, mlp_dim=20, num_heads=3),
    text=sr.TextConfig(
        vocab_size=23, context_length=5, width=8, depth=2, mlp_dim=14, num_heads=2, out_dim=12
    ),
)


def big_vision(params, *, prefix: str, stacked: bool):
    """The parameters under big_vision's names and shapes, written down independently."""
    flat = {}

    def dense(name, leaves, shape=None):
        flat[f"{name}/kernel"] = leaves["kernel"].reshape(shape or leaves["kernel"].shape)
        flat[f"{name}/bias"] = leaves["bias"]

    def attention(name, leaves, heads):
        width = leaves["query"]["bias"].size
        for projection in ("query", "key", "value"):
            dense(f"{name}/{projection}", leaves[projection], (width, heads, width // heads))
            flat[f"{name}/{projection}/bias"] = leaves[projection]["bias"].reshape(heads, -1)
        dense(f"{name}/out", leaves["out"], (heads, width // heads, width))

    def norm(name, leaves):
        flat[f"{name}/scale"], flat[f"{name}/bias"] = leaves["scale"], leaves["bias"]

    def mlp(name, leaves):
        dense(f"{name}/Dense_0", leaves["dense_0"])
        dense(f"{name}/Dense_1", leaves["dense_1"])

    for tower, encoder, heads in (("img", "Transformer", 3), ("txt", "Encoder_0", 2)):
        for index, block in enumerate(params[tower]["block"].values()):
            name = f"{tower}/{encoder}/encoderblock_{index}"
            norm(f"{name}/LayerNorm_0", block["ln_0"])
            norm(f"{name}/LayerNorm_1", block["ln_1"])
            attention(f"{name}/MultiHeadDotProductAttention_0", block["attn"], heads)
            mlp(f"{name}/MlpBlock_0", block["mlp"])
        norm(f"{tower}/{encoder}/encoder_norm", params[tower]["encoder_norm"])
        flat[f"{tower}/pos_embedding"] = params[tower]["pos_embedding"][None]
    head = params["img"]["map_head"]
    flat["img/MAPHead_0/probe"] = head["probe"][None]
    attention("img/MAPHead_0/MultiHeadDotProductAttention_0", head["attn"], 3)
    norm("img/MAPHead_0/LayerNorm_0", head["ln"])
    mlp("img/MAPHead_0/MlpBlock_0", head["mlp"])
    dense("img/embedding", params["img"]["patch_embed"], (4, 4, 3, 12))
    flat["txt/Embed_0/embedding"] = params["txt"]["embed"]["embedding"]
    dense("txt/head", params["txt"]["head"])
    flat["t"], flat["b"] = params["t_prime"].reshape(1), params["b"].reshape(1)
    if stacked:
        for name in [name for name in flat if "encoderblock_0/" in name]:
            depth = 3 if name.startswith("img") else 2
            layers = [flat.pop(name.replace("block_0/", f"block_{i}/")) for i in range(depth)]
            flat[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(layers)
    return {prefix + name: leaf for name, leaf in flat.items()}


@pytest.mark.parametrize("prefix", ["", "params/"])
@pytest.mark.parametrize("stacked", [False, True])
def test_every_layout_of_big_vision_is_read(prefix, stacked):
    params = sr.init_params(CONFIG, np.random.default_rng(0))
    back = params_from_big_vision(big_vision(params, prefix=prefix, stacked=stacked), CONFIG)
    found = sr.tree.flatten(back)
    for path, leaf in sr.tree.flatten(params).items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path, strict=True)


def test_a_big_vision_file_that_does_not_fit_is_refused_by_path():
    params = sr.init_params(CONFIG, np.random.default_rng(0))
    arrays = big_vision(params, prefix="", stacked=False)
    del arrays["img/MAPHead_0/probe"]
    with pytest.raises(ValueError, match="missing img/map_head/probe"):
        params_from_big_vision(arrays, CONFIG)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("img/block/00/mlp/dense_0/kernel", "img/Transformer/encoderblock_0/MlpBlock_0/Dense_0"),
        (
            "img/block/01/attn/query/kernel",
            "img/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/query",
        ),
        ("img/patch_embed/kernel", "img/embedding"),
    ],
)
def test_a_kernel_of_the_right_size_with_its_axes_in_another_order_is_refused(path, name):
    params = sr.init_params(CONFIG, np.random.default_rng(0))
    arrays = big_vision(params, prefix="", stacked=False)
    arrays[f"{name}/kernel"] = np.moveaxis(arrays[f"{name}/kernel"], -1, 0)
    with pytest.raises(ValueError, match=rf"{path} has the shape \(.*, wanted"):
        params_from_big_vision(arrays, CONFIG)


def test_the_position_embedding_of_naflex_may_keep_its_grid():
    params = sr.init_params(CONFIG, np.random.default_rng(0))
    arrays = big_vision(params, prefix="", stacked=True)
    arrays["img/pos_embedding"] = arrays["img/pos_embedding"].reshape(2, 2, 12)
    back = params_from_big_vision(arrays, CONFIG)
    np.testing.assert_array_equal(back["img"]["pos_embedding"], params["img"]["pos_embedding"])


def test_big_vision_arrays_that_are_no_floats_are_refused_by_name():
    params = sr.init_params(CONFIG, np.random.default_rng(0))
    arrays = big_vision(params, prefix="", stacked=False)
    arrays["txt/head/bias"] = arrays["txt/head/bias"].view("V4")
    with pytest.raises(TypeError, match="txt/head/bias must be of a floating dtype"):
        params_from_big_vision(arrays, CONFIG)


def test_exported_weights_survive_a_safetensors_file(tmp_path):
    state = params_to_huggingface(sr.init_params(CONFIG, np.random.default_rng(0)), CONFIG)
    save_file(state, tmp_path / "model.safetensors")
    back = load_file(tmp_path / "model.safetensors")
    for name, tensor in state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name, strict=True)
