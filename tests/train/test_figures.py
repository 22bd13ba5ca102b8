"""Pictures show what they are given, keep names within their space, and count pairs exactly."""

import warnings

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_train.corpus import ValidationPair
from siglip_train.evaluation import Embedded, Task
from siglip_train.figures import curves, retrieval_grid, similarity
from siglip_train.figures.lettering import drawable, drawn_width, fitted
from siglip_train.figures.similarity_matrix import count_cosines
from siglip_train.report import png, write_report
from strategies import unit_rows

HARD_NAMES = [
    "sold $_$ out",  # mathematics, if it were taken for it, and no correct one
    "W" * 300,
    "हिन्दी ไทย 한국어 עברית",
    "two\nlines\tand tabs",
    "\x07\u200b",
    "👍🏽 thumbs up",
]


def embedded(n, m=None, *, texts=None, kind="retrieval", seed=0):
    m = m or n
    rng = np.random.default_rng(seed)
    texts = texts or [f"thing {i}" for i in range(m)]
    pairs = [
        ValidationPair(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8), {}) for _ in range(n)
    ]
    task = Task("seen", pairs, texts, np.arange(n) % m, ("{}",), kind)
    return Embedded(task, unit_rows(rng, n, 6), unit_rows(rng, m, 6))


def drawn_text(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


@given(
    text=st.text(max_size=80), width=st.floats(0.3, 3), weight=st.sampled_from(["normal", "bold"])
)
def test_a_name_is_drawn_without_a_warning_and_no_wider_than_its_space(text, width, weight):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = fitted(text, width, 8, weight)
        assert shown
        assert len(shown) <= 2 or drawn_width(shown, 8, weight) <= width


def test_a_name_that_fits_is_drawn_whole_and_one_that_does_not_ends_in_an_ellipsis():
    assert fitted("cat", 1.0, 8) == "cat"
    short = fitted("cat " * 40, 1.0, 8)
    assert short.endswith("…")
    assert len(short) > 10
    assert drawable("two\n lines 猫") == "two lines"


@pytest.mark.parametrize("pictures", [1, 6])
def test_no_name_can_break_a_picture(pictures):
    part = embedded(pictures, texts=HARD_NAMES[:pictures])
    for figure in (retrieval_grid([part], 10.0, -5.0), similarity(part, 10.0, -5.0)):
        assert png(figure).startswith(b"\x89PNG")


def test_nothing_in_the_grid_reaches_beyond_the_picture_or_into_the_percentages():
    part = embedded(12, texts=[f"{i} " + "MW" * 60 for i in range(12)])
    figure = retrieval_grid([part], 10.0, -5.0)
    renderer = figure.canvas.get_renderer()
    boxes = {
        text: text.get_window_extent(renderer)
        for text in figure.findobj(mpl.text.Text)
        if text.get_text()
    }
    for box in boxes.values():
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
    drawn = list(boxes.values())
    overlaps = [
        (a, b) for i, a in enumerate(drawn) for b in drawn[i + 1 :] if a.overlaps(b) and a is not b
    ]
    assert not overlaps


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_all_pairs_are_counted_once_and_found_where_their_logit_is_positive(chunk):
    part = embedded(40, 15)
    counts = count_cosines(part, 10.0, -2.0, chunk=chunk)
    own = part.task.answers[:, None] == np.arange(15)
    yes = 10 * (part.zimg @ part.ztxt.T) - 2 > 0
    assert (counts.matching.sum(), counts.others.sum()) == (40, 560)
    assert counts.matching_found == (yes & own).sum()
    assert counts.others_found == (yes & ~own).sum()


@pytest.mark.parametrize(
    ("t", "b", "said"),
    [
        (10.0, -5.0, "boundary -b/t = 0.50"),
        (2.0, -9.0, "the model says no to every pair"),
        (2.0, 9.0, "the model says yes to every pair"),
    ],
)
def test_the_boundary_is_drawn_or_said_to_be_out_of_reach(t, b, said):
    figure = similarity(embedded(20), t, b)
    assert said in "\n".join(drawn_text(figure))
    assert png(figure)


def test_the_curves_show_the_learning_rate_and_the_recall_with_its_chance():
    record = {"loss": 1.0, "t": 9.0, "b": -5.0, "gradient_norm": 1.0}
    record |= {"schedule": 0.5, "examples_per_second": 400.0}
    evaluation = {"seen/image_to_text/R@5": 0.25, "seen/image_to_text/chance@5": 0.003}
    records = [{"step": 1, **record}, {"step": 2, **record, "eval": evaluation}]
    text = "\n".join(drawn_text(curves(records)))
    assert "learning rate / its peak" in text
    assert "seen, image to text: 25.0 % (chance 0.3 %)" in text
    assert "no validation data" in "\n".join(drawn_text(curves(records[:1])))


def test_classes_are_in_the_table_but_not_among_the_pictures(tmp_path):
    metrics = {"seen/zero_shot/R@1": 0.5, "seen/zero_shot/chance@1": 0.1}
    common = {"records": [], "metrics": metrics, "t": 10.0, "b": -5.0, "config_text": ""}
    write_report(tmp_path, embedded=[embedded(9, kind="zero_shot")], skipped="", **common)
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "report.html"}
    assert "seen, zero shot" in (tmp_path / "report.html").read_text()


def test_a_users_own_style_of_matplotlib_changes_nothing_and_stays_as_it_was(tmp_path):
    arguments = {"records": [], "metrics": {}, "embedded": [embedded(8)], "skipped": ""}
    arguments |= {"t": 10.0, "b": -5.0, "config_text": ""}
    (tmp_path / "plain").mkdir()
    (tmp_path / "styled").mkdir()
    write_report(tmp_path / "plain", **arguments)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 40}):
        write_report(tmp_path / "styled", **arguments)
        assert mpl.rcParams["font.size"] == 30
    for name in ("curves.png", "retrieval.png", "similarity.png"):
        plain, styled = ((tmp_path / kind / name).read_bytes() for kind in ("plain", "styled"))
        assert plain == styled


def test_the_page_says_which_checkpoint_to_go_on_from_and_how(tmp_path):
    folder = tmp_path / "my run"
    folder.mkdir()
    record = {"step": 70, "loss": 1.0, "t": 9.0, "b": -5.0, "gradient_norm": 1.0}
    record |= {"schedule": 0.5, "examples_per_second": 400.0}
    common = {"metrics": {}, "embedded": [], "t": 9.0, "b": -5.0, "config_text": "", "skipped": ""}
    write_report(folder, records=[record], **common)
    page = (folder / "report.html").read_text()
    assert "step-00000070.safetensors" in page
    assert f"--resume &#x27;{folder}&#x27;" in page
