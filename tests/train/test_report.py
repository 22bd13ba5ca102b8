"""The report shows what it is given, stands by itself, and copes with little or odd data."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from siglip_train.corpus import ValidationPair
from siglip_train.evaluation import Embedded, Task, task_metrics
from siglip_train.figures import logistic, retrieval_grid, shortened, similarity, smoothed
from siglip_train.report import write_report

ODD = ["flag: åland islands", "x" * 200, "猫", 'a <b> & "c"', "$ 5_000 ^", "👍🏽"]


def embedded(n: int, *, texts: list[str] | None = None) -> Embedded:
    rng = np.random.default_rng(0)
    texts = texts or [f"thing {i}" for i in range(n)]
    z = rng.standard_normal((n, 6))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    pairs = [
        ValidationPair(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), {"name": text})
        for text in texts
    ]
    return Embedded(Task("seen", pairs, texts, np.arange(n)), z, z[::-1].copy())


def records(count: int) -> list[dict]:
    return [
        {
            "step": step,
            "loss": 5 / step,
            "t": 10.0,
            "b": -5.0,
            "gradient_norm": 1.0,
            "schedule": 1.0,
            "examples_per_second": 400.0,
        }
        for step in range(1, count + 1)
    ]


def report(folder: Path, parts: list[Embedded], count: int = 30, **changes) -> str:
    metrics = {key: value for part in parts for key, value in task_metrics(part).items()}
    log = records(count)
    if metrics and log:
        log[-1]["eval"] = metrics
    arguments = {"t": 10.0, "b": -5.0, "config_text": 'loss = "sigmoid"', "skipped": ""} | changes
    write_report(folder, records=log, metrics=metrics, embedded=parts, **arguments)
    return (folder / "report.html").read_text()


def test_the_page_holds_results_settings_and_three_pictures_and_needs_nothing_else(tmp_path):
    page = report(tmp_path, [embedded(40)], skipped="2 x no caption")
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "loss = &quot;sigmoid&quot;" in page
    assert "2 x no caption" in page
    assert "12.5%" in page  # chance at 5 of 40
    for name in ("curves", "retrieval", "similarity"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert np.asarray(picture.convert("L")).std() > 5


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_of_few_steps_and_no_validation_data_is_reported(tmp_path, count):
    page = report(tmp_path, [], count=count)
    assert "No validation data" in page
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "report.html"}


def test_names_in_any_script_and_of_any_length_are_shown(tmp_path):
    page = report(tmp_path, [embedded(len(ODD), texts=ODD)])
    assert page.count("data:image/png;base64,") == 3


def test_what_comes_from_the_user_is_escaped(tmp_path):
    folder = tmp_path / "<script>"
    folder.mkdir()
    page = report(folder, [], config_text="<script>alert(1)</script>", skipped="<script>")
    assert "<script>" not in page


def drawn_text(figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))


def test_the_grid_marks_the_right_name_and_says_its_place_where_it_is_not_among_five():
    part = embedded(40)
    text = drawn_text(retrieval_grid([part], t=10.0, b=-5.0, each=6))
    scores = part.zimg @ part.ztxt.T
    right = [int(np.sum(row >= row[i])) for i, row in enumerate(scores)]
    chosen = np.unique(np.linspace(0, 39, 6).astype(int))
    assert text.count("✓") == sum(right[i] <= 5 for i in chosen)
    assert text.count("✓") + text.count("✗") == 5 * 6
    assert [int(place) for place in re.findall(r"place (\d+)", text)] == [
        right[i] for i in chosen if right[i] > 5
    ]


def test_the_similarity_picture_counts_answers_and_says_where_the_boundary_is():
    part = embedded(20)
    cosines = part.zimg @ part.ztxt.T
    yes = 10 * cosines - 5 > 0
    text = drawn_text(similarity(part, t=10.0, b=-5.0, pairs=20))
    assert f"{int(np.diag(yes).sum())} matches found" in text
    assert f"{int(yes.sum() - np.diag(yes).sum())} of 380 others" in text
    assert "boundary -b/t = 0.50" in text
    assert "lies outside [-1, 1]" in drawn_text(similarity(part, t=2.0, b=-9.0))


def test_the_running_mean_starts_short_and_keeps_a_constant():
    np.testing.assert_allclose(smoothed(np.full(200, 3.0)), 3.0)
    np.testing.assert_allclose(smoothed(np.arange(200.0))[[0, 1, 199]], [0, 0.5, 197.5])


def test_the_logistic_function_for_display_does_not_overflow():
    np.testing.assert_allclose(logistic(np.array([-1e4, 0.0, 1e4])), [0, 0.5, 1])


def test_a_long_name_ends_in_an_ellipsis():
    assert shortened("abcdef", 4) == "abc…"
    assert shortened("猫", 20) == "(no letters)"


def test_the_same_data_give_the_same_picture(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a", "b"):
        report(tmp_path / name, [embedded(12)])
    one, other = (
        np.asarray(Image.open(io.BytesIO((tmp_path / name / "retrieval.png").read_bytes())))
        for name in ("a", "b")
    )
    np.testing.assert_array_equal(one, other)
