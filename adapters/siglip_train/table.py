"""The metrics of an evaluation as a table: a line for each task and direction."""

from typing import NamedTuple

from siglip_train.evaluation import KS


class TableRow(NamedTuple):
    """A line of the table of results."""

    title: str
    recalls: list[tuple[float, float] | None]
    """For each of `KS` the recall and its chance, None where it is not measured."""
    note: str
    """What else is known: the median rank, or the mean recall of classes."""


def table_rows(metrics: dict[str, float]) -> list[TableRow]:
    """The metrics as lines of a table, one for each task and direction."""
    rows = []
    for key in metrics:
        if key.endswith("/R@1"):
            row = key.removesuffix("/R@1")
            recalls = [
                (metrics[f"{row}/R@{k}"], metrics[f"{row}/chance@{k}"])
                if f"{row}/R@{k}" in metrics
                else None
                for k in KS
            ]
            note = ""
            if f"{row}/median_rank" in metrics:
                note = f"median rank {metrics[f'{row}/median_rank']:g}"
            elif f"{row}/mean_per_class_recall" in metrics:
                note = f"mean over classes {metrics[f'{row}/mean_per_class_recall']:.1%}"
            rows.append(TableRow(row.replace("/", ", ").replace("_", " "), recalls, note))
    return rows


def format_table(metrics: dict[str, float]) -> str:
    """The metrics for a terminal: a line for each task and direction, chance beside each."""
    rows = table_rows(metrics)
    width = max((len(row.title) for row in rows), default=0)
    lines = [f"{'':{width}}" + "".join(f"{f'R@{k}':>8}{'chance':>8}" for k in KS)]
    for row in rows:
        cells = "".join(
            " " * 16 if recall is None else f"{recall[0]:8.1%}{recall[1]:8.1%}"
            for recall in row.recalls
        )
        lines.append(f"{row.title:{width}}{cells}  {row.note}".rstrip())
    return "\n".join(lines)
