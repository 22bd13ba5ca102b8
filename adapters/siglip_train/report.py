"""The page that a run leaves behind: results, pictures and settings in one file."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from siglip_train.checkpoints import write_atomically
from siglip_train.evaluation import KS, Embedded
from siglip_train.figures import curves, retrieval_grid, similarity

_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
figure { margin: 2rem 0; } figcaption { max-width: 48rem; }
img { max-width: 100%; background: white; border-radius: 6px; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem; text-align: right; }
td, th { border-bottom: 1px solid var(--line); }
td:first-child, th:first-child { text-align: left; }
small { opacity: .7; } pre { overflow-x: auto; }
"""


def write_report(
    folder: Path,
    *,
    records: Sequence[dict[str, Any]],
    metrics: dict[str, float],
    embedded: Sequence[Embedded],
    t: float,
    b: float,
    config_text: str,
    skipped: str,
) -> None:
    """Write `curves.png`, `retrieval.png`, `similarity.png` and `report.html` into a run folder.

    The page holds the pictures itself and needs no other file. Without validation data there are
    only the curves.
    """
    pictures = [
        (
            "curves.png",
            curves(records),
            "The run. Thin lines are single steps, thick ones their running mean.",
        )
    ]
    if embedded:
        pictures += [
            (
                "retrieval.png",
                retrieval_grid(embedded, t, b),
                "Validation images with the five names the model finds most likely. Green is "
                "right, red is wrong; the percentage is its probability that the pair matches.",
            ),
            (
                "similarity.png",
                similarity(embedded[0], t, b),
                "Each pair is a yes/no question of its own. Left: the answers within a batch, "
                "whose diagonal should be bright. Right: the cosines behind them, with the "
                "boundary beyond which the sigmoid says yes.",
            ),
        ]
    figures = []
    for name, figure, caption in pictures:
        data = png(figure)
        write_atomically(folder / name, data)
        figures.append(
            f'<figure><img alt="{html.escape(name)}" '
            f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    last = records[-1] if records else {"step": 0}
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>siglip-train: {html.escape(folder.name)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body>
<h1>{html.escape(folder.name)}</h1>
<p>{last["step"]:,} steps, t = {t:.2f}, b = {b:.2f}.
Go on with <code>siglip-train --resume {html.escape(str(folder))} --steps …</code></p>
{_results(metrics)}
{f"<p>Left out:</p><pre>{html.escape(skipped)}</pre>" if skipped else ""}
{"".join(figures)}
<details><summary>Settings</summary><pre>{html.escape(config_text)}</pre></details>
</body></html>
"""
    write_atomically(folder / "report.html", page.encode())


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _results(metrics: dict[str, float]) -> str:
    if not metrics:
        return "<p>No validation data.</p>"
    head = "".join(f"<th>R@{k}</th><th><small>chance</small></th>" for k in KS)
    rows = []
    for key in metrics:
        if key.endswith("/R@1"):
            row = key.removesuffix("/R@1")
            cells = "".join(
                f"<td>{metrics[f'{row}/R@{k}']:.1%}</td>"
                f"<td><small>{metrics[f'{row}/chance@{k}']:.1%}</small></td>"
                for k in KS
            )
            title = html.escape(row.replace("/", ", ").replace("_", " "))
            rows.append(f"<tr><td>{title}</td>{cells}</tr>")
    return f"<table><thead><tr><th>recall</th>{head}</tr></thead>{''.join(rows)}</table>"
