"""Settings come from defaults, then a file, then flags, and are written back in full."""

import dataclasses
import math

import pytest

import siglip_ref as sr
from siglip_train.__main__ import parser
from siglip_train.settings import Settings


def test_a_written_record_reads_back_equal(tmp_path):
    settings = Settings().replace(
        loss="softmax", learning_rate=3, freeze=["img/"], bias_init=-2.5, augment=False
    )
    path = tmp_path / "config.toml"
    path.write_text(settings.to_toml())
    assert Settings.from_toml(path) == settings
    assert settings.learning_rate == 3.0
    assert settings.initial_bias() == -2.5


def test_a_file_changes_only_what_it_names(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('batch_size = 64\ntrain = ["a", "b"]\n')
    changed = dataclasses.asdict(Settings.from_toml(path))
    assert changed == dataclasses.asdict(Settings()) | {"batch_size": 64, "train": ("a", "b")}


def test_every_setting_is_a_flag():
    flags = {action.dest for action in parser()._actions}
    assert {field.name for field in dataclasses.fields(Settings)} <= flags


def test_flags_are_converted_to_the_type_of_their_setting():
    args = parser().parse_args(
        ["--batch-size", "64", "--no-augment", "--freeze", "img/", "txt/", "--ema", "0.5"]
    )
    settings = Settings().replace(
        **{
            name: value
            for name, value in vars(args).items()
            if name not in ("config", "out", "resume")
        }
    )
    assert settings == Settings(batch_size=64, augment=False, freeze=("img/", "txt/"), ema=0.5)


@pytest.mark.parametrize(
    ("changes", "wanted", "got"),
    [
        ({"batch_size": 1}, "at least 2", "1"),
        ({"steps": 0}, "at least 1", "0"),
        ({"loss": "hinge"}, "sigmoid, softmax", "hinge"),
        ({"batch_size": "64"}, "int", "'64'"),
        ({"batch_size": 6.5}, "int", "6.5"),
        ({"train": "emoji"}, "list of strings", "'emoji'"),
        ({"bias_init": "low"}, "number or `prior`", "'low'"),
        ({"variant": "B/17"}, "B/16-224", "'B/17'"),
        ({"learning_rate": 0.0}, "above 0", "0.0"),
        ({"ema": 1.0}, "[0, 1)", "1.0"),
        ({"warmup": 5000}, "shorter than 1000 steps", "5000"),
        ({"batchsize": 64}, "batch_size", "batchsize"),
    ],
)
def test_a_wrong_setting_is_refused_naming_what_was_wanted_and_what_came(changes, wanted, got):
    with pytest.raises((ValueError, TypeError)) as caught:
        Settings(steps=1000).replace(**changes)
    message = str(caught.value)
    assert next(iter(changes)) in message
    assert wanted in message
    assert got in message


def test_a_broken_file_is_refused_by_its_name(tmp_path):
    path = tmp_path / "broken.toml"
    for content in (b"batch_size = ", b"batch_size = -3", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"config .*broken\.toml"):
            Settings.from_toml(path)
    with pytest.raises(ValueError, match=r"config .*absent\.toml"):
        Settings.from_toml(tmp_path / "absent.toml")


def test_the_prior_bias_follows_the_batch_size():
    assert Settings(batch_size=256).initial_bias() == pytest.approx(-math.log(255), rel=1e-15)
    assert Settings(batch_size=64).initial_bias() == pytest.approx(-math.log(63), rel=1e-15)


def test_a_variant_takes_the_place_of_the_sizes():
    assert Settings(variant="B/16-224").model_config(32_000) == sr.variants["B/16-224"]
    with pytest.raises(ValueError, match=r"tokenizer must be one of at most the 32000 ids.* 32001"):
        Settings(variant="B/16-224").model_config(32_001)


def test_warmup_is_a_number_of_steps_or_a_part_of_them():
    assert Settings(steps=500, warmup=0.1).warmup_steps == 50
    assert Settings(steps=500, warmup=30).warmup_steps == 30
    assert Settings(steps=4, warmup=0.1).warmup_steps == 0
