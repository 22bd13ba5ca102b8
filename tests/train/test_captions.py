"""Templates: what they become, when they fit, and how often each is drawn."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_train.captions import (
    EMOJI_TEMPLATES,
    PLAIN_TEMPLATES,
    ZERO_SHOT_TEMPLATES,
    CaptionTemplates,
    draw_caption,
)

CAT = {
    "name": "cat face",
    "keywords": ["cat", "face", "pet", "whiskers"],
    "style": "flat",
    "vendor": "fluent",
}


def draw_many(metadata, templates, count=400, seed=0):
    rng = np.random.default_rng(seed)
    return [draw_caption(metadata, templates, rng) for _ in range(count)]


def one(template):
    return CaptionTemplates([(template, 1.0)])


def test_a_field_is_replaced_by_its_string_and_the_text_around_it_stays():
    assert draw_many(CAT, one("a {style} drawing of {name}!"), 1) == ["a flat drawing of cat face!"]


def test_doubled_braces_stand_for_braces():
    assert draw_many(CAT, one("{{{name}}}"), 1) == ["{cat face}"]


def test_a_field_that_is_a_list_gives_one_of_its_strings():
    assert set(draw_many(CAT, one("{keywords}"))) == set(CAT["keywords"])


@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 2**32))
def test_a_count_gives_so_many_distinct_strings_joined_by_commas(least, more, seed):
    words = [f"w{i}" for i in range(8)]
    (caption,) = draw_many(
        {"keywords": words}, one(f"{{keywords:{least}-{least + more}}}"), 1, seed
    )
    drawn = caption.split(", ")
    assert least <= len(drawn) <= least + more
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(words)


def test_a_count_of_three_gives_one_or_two_or_three_strings_in_any_order():
    drawn = [caption.split(", ") for caption in draw_many(CAT, one("{keywords:3}"))]
    assert {len(words) for words in drawn} == {1, 2, 3}
    assert ["cat", "pet"] in drawn
    assert ["pet", "cat"] in drawn


def test_more_strings_than_there_are_cannot_be_drawn():
    drawn = draw_many({"keywords": ["cat", "pet"]}, one("{keywords:9}"))
    assert set(drawn) == {"cat", "pet", "cat, pet", "pet, cat"}


def test_repeated_and_blank_strings_of_a_list_do_not_count():
    metadata = {"keywords": ["cat", " cat ", "", "  ", "pet"]}
    assert set(draw_many(metadata, one("{keywords:2-9}"))) == {"cat, pet", "pet, cat"}


@pytest.mark.parametrize(
    "metadata",
    [
        {"caption": "a cat"},
        {"captions": ["a cat"]},
        {"caption": ["a cat"]},
        {"caption": " a cat\n"},
    ],
    ids=["string", "list", "list in caption", "with blanks around"],
)
def test_the_caption_may_be_a_string_or_a_list_under_either_name(metadata):
    assert draw_many(metadata, PLAIN_TEMPLATES, 1) == ["a cat"]


def test_one_of_several_captions_is_drawn():
    metadata = {"caption": "a cat", "captions": ["a pet", "an animal"]}
    assert set(draw_many(metadata, PLAIN_TEMPLATES)) == {"a cat", "a pet", "an animal"}


def test_templates_are_drawn_by_their_weights():
    count = 4000
    templates = CaptionTemplates([("{name}", 6), ("a {name}", 3), ("the {name}", 1)])
    drawn = Counter(draw_many({"name": "cat"}, templates, count))
    for caption, share in (("cat", 0.6), ("a cat", 0.3), ("the cat", 0.1)):
        deviation = (count * share * (1 - share)) ** 0.5
        assert abs(drawn[caption] - count * share) < 4 * deviation


def test_templates_of_equal_weight_are_equally_likely():
    templates = CaptionTemplates.of_equal_weight(["{name}", "a {name}"])
    drawn = Counter(draw_many({"name": "cat"}, templates, 4000))
    assert abs(drawn["cat"] - 2000) < 130


@pytest.mark.parametrize("style", [None, "", "  ", [], [""], 3], ids=repr)
def test_a_template_with_an_empty_field_is_never_drawn(style):
    templates = CaptionTemplates([("{name}, {style}", 1000), ("{name}", 1)])
    assert set(draw_many({"name": "cat", "style": style}, templates, 50)) == {"cat"}


def test_a_template_that_wants_more_strings_than_there_are_is_never_drawn():
    assert set(draw_many({"name": "cat", "keywords": ["pet"]}, EMOJI_TEMPLATES)) == {
        "cat",
        "a drawing of cat",
        "an emoji of cat",
        "cat, pet",
    }


def test_a_sample_that_fits_no_template_is_an_error_that_names_wanted_and_present_fields():
    templates = CaptionTemplates([("{name}, {style}", 1), ("{keywords:2-4}", 1)])
    metadata = {"style": "flat", "vendor": "noto", "name": "", "size": 3}
    wanted = r"wanted name and style or 2 keywords; fields with text: style, vendor$"
    with pytest.raises(ValueError, match=wanted):
        draw_caption(metadata, templates, np.random.default_rng(0))


def test_a_sample_without_any_text_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="wanted caption; fields with text: none"):
        draw_caption({}, PLAIN_TEMPLATES, np.random.default_rng(0))


def test_equal_generators_draw_equal_captions_and_others_do_not():
    assert draw_many(CAT, EMOJI_TEMPLATES, seed=1) == draw_many(CAT, EMOJI_TEMPLATES, seed=1)
    assert draw_many(CAT, EMOJI_TEMPLATES, seed=1) != draw_many(CAT, EMOJI_TEMPLATES, seed=2)


def test_every_emoji_template_is_drawn_for_a_sample_with_all_fields():
    drawn = draw_many(CAT, EMOJI_TEMPLATES)
    assert {"cat face", "a drawing of cat face", "an emoji of cat face"} <= set(drawn)
    assert {"cat face, flat", "cat face, pet", "pet, whiskers"} <= set(drawn)


@pytest.mark.parametrize(
    "template",
    [
        "{}",
        "{0}",
        "{name!r}",
        "{name.first}",
        "{name[0]}",
        "{name",
        "name}",
        "{keywords:x}",
        "{keywords:0}",
        "{keywords:4-2}",
        "{keywords:0-2}",
        "{keywords:-2}",
        "{keywords:{n}}",
        "{na me}",
    ],
)
def test_other_syntax_is_refused_when_the_templates_are_made(template):
    with pytest.raises(ValueError, match="template "):
        one(template)


@pytest.mark.parametrize("template", ["", "a drawing", "{{name}}"])
def test_a_template_without_a_field_is_refused(template):
    with pytest.raises(ValueError, match="names no field"):
        one(template)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_a_weight_that_is_not_positive_and_finite_is_refused(weight):
    with pytest.raises(ValueError, match=r"weight of template '\{name\}' must be positive"):
        CaptionTemplates([("{name}", weight)])


def test_an_empty_list_of_templates_is_refused():
    with pytest.raises(ValueError, match="at least one template"):
        CaptionTemplates([])


def test_zero_shot_prompts_have_one_place_for_the_name():
    prompts = [template.format("cat") for template in ZERO_SHOT_TEMPLATES]
    assert prompts == ["cat", "a drawing of cat", "an emoji of cat"]
