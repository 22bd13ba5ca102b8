"""The page that a run leaves behind: results, pictures and settings in one file."""

import base64
import html
import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure

from siglip_train.checkpoints import step_path, write_atomically
from siglip_train.evaluation import KS, Embedded
from siglip_train.figures import curves, retrieval_grid, similarity
from siglip_train.table import table_rows

_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 3rem; } p, figcaption { max-width: 48rem; }
figure { margin: 1rem 0 2rem; } figcaption { margin-bottom: .8rem; }
img { width: 100%; background: white; border-radius: 8px; border: 1px solid var(--line); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
td:first-child, th:first-child, td:last-child { text-align: left; }
th { font-weight: 600; } .faint { opacity: .65; font-weight: 400; }
pre { overflow-x: auto; padding: .8rem; border: 1px solid var(--line); border-radius: 6px; }
code { overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { img { filter: brightness(.9); } }
"""

_PICTURES_SHOWN = 24  # in the retrieval grid


def write_report(
    folder: Path,
    *,
    records: Sequence[dict[str, Any]],
    metrics: dict[str, float],
    embedded: Sequence[Embedded],
    t: float,
    b: float | None,
    config_text: str,
    skipped: str,
) -> None:
    """Write `curves.png`, `retrieval.png`, `similarity.png` and `report.html` into a run folder.

    The page holds the pictures itself and needs no other file. Without validation data there are
    only the curves. `b` is None for a model trained with the softmax loss, which has no decision
    boundary and so no similarity picture.
    """
    with style.context("default"):  # not what a user's matplotlibrc says
        pictures = _pictures(records, embedded, t, b)
        sections = []
        for name, title, figure, caption in pictures:
            data = png(figure)
            write_atomically(folder / f"{name}.png", data)
            sections.append(
                f"<h2>{title}</h2><figure><figcaption>{html.escape(caption)}</figcaption>"
                f'<img alt="{title}" src="data:image/png;base64,'
                f'{base64.b64encode(data).decode()}"></figure>'
            )
    step = records[-1]["step"] if records else 0
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>siglip-train: {html.escape(folder.name)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body>
<h1>{html.escape(folder.name)}</h1>
<p>{step:,} steps; t = {t:.2f}{"" if b is None else f", b = {b:.2f}"}.</p>
{_results(metrics)}
{"".join(sections)}
<h2>Going on</h2>
<p>The checkpoint is <code>{html.escape(str(step_path(folder, step)))}</code>. Train on with
<code>siglip-train --resume {html.escape(shlex.quote(str(folder)))} --steps …</code></p>
{f"<p>Left out of the data:</p><pre>{html.escape(skipped)}</pre>" if skipped else ""}
<details><summary>Settings</summary><pre>{html.escape(config_text)}</pre></details>
</body></html>
"""
    write_atomically(folder / "report.html", page.encode())


def _pictures(
    records: Sequence[dict[str, Any]], embedded: Sequence[Embedded], t: float, b: float | None
) -> list[tuple[str, str, Figure, str]]:
    """File name, title, picture, and how to read it."""
    pictures = [
        (
            "curves",
            "The run",
            curves(records),
            "Recall at 5 is the share of queries with a right answer among the five best; the "
            "dotted lines are what a random order would give.",
        )
    ]
    retrievals = [part for part in embedded if part.task.kind == "retrieval"]
    if retrievals:
        probability = "softmax(t cos) over all texts" if b is None else "sigmoid(t cos + b)"
        pictures.append(
            (
                "retrieval",
                "What the model calls these pictures",
                retrieval_grid(retrievals, t, b, each=_PICTURES_SHOWN // len(retrievals)),
                "Validation images, evenly spread over the data and not chosen, with the five "
                "texts that fit best. Green is right, red is wrong, the percentage is "
                f"{probability}; below stands the right text where it is not among the five.",
            )
        )
    if retrievals and b is not None:
        pictures.append(
            (
                "similarity",
                "Each pair is a yes/no question",
                similarity(retrievals[0], t, b),
                "Left: the model's answers within a batch, whose diagonal should be dark and the "
                "rest white. Right: the cosines of all pairs (on a logarithmic scale), with the "
                "boundary beyond which the sigmoid says yes; a better model moves green to the "
                "right of red.",
            )
        )
    return pictures


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _results(metrics: dict[str, float]) -> str:
    if not metrics:
        return "<p>No validation data.</p>"
    head = "".join(f'<th>R@{k}</th><th class="faint">chance</th>' for k in KS)
    rows = []
    for row in table_rows(metrics):
        cells = "".join(
            "<td></td><td></td>"
            if recall is None
            else f'<td>{recall[0]:.1%}</td><td class="faint">{recall[1]:.1%}</td>'
            for recall in row.recalls
        )
        title, note = html.escape(row.title), html.escape(row.note)
        rows.append(f'<tr><td>{title}</td>{cells}<td class="faint">{note}</td></tr>')
    return (
        f'<div class="wide"><table><thead><tr><th>recall</th>{head}<th></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
