"""docs/benchmarks.md, from the figures in results.json, with what was asked beside what was found.

Every figure of the page comes from the results; the words are here. Ratios are judged as they are
printed, with two decimals.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"

Results = dict[str, dict[str, Any]]
"""By section: the figures of its program, the commands that gave them, and the machine."""


class Target(NamedTuple):
    """Between which bounds a figure should be."""

    low: float = float("-inf")
    high: float = float("inf")
    digits: int = 2
    unit: str = ""

    def asked(self) -> str:
        """The bounds in words."""
        if self.low == float("-inf"):
            return f"≤ {self.high:g}{self.unit}"
        if self.high == float("inf"):
            return f"≥ {self.low:g}{self.unit}"
        return f"{self.low:g} to {self.high:g}{self.unit}"

    def met(self, value: float) -> bool:
        """Whether the figure, as it is printed, is within the bounds."""
        return self.low <= round(value, self.digits) <= self.high

    def shown(self, value: float) -> str:
        """The figure, in bold outside of the bounds."""
        text = f"{value:,.{self.digits}f}{self.unit}"
        return text if self.met(value) else f"**{text}**"


FLOOR = Target(high=1.15)
PEER = Target(high=0.6)
PEER_SIZES = (4096, 8192)
DOUBLED = Target(3.6, 4.4)
EXTRA = Target(high=64, digits=0, unit=" MB")
WHOLE = Target(high=2, unit=" GB")
RING = Target(low=1.8)
STEP_TIME = Target(high=0.9)
STEP_MEMORY = Target(high=0.8)
REMAT_MEMORY = Target(high=0.4)


class Finding(NamedTuple):
    """A figure that something was asked of."""

    claim: str
    target: Target
    value: float
    where: str


def page(results: Results) -> str:
    """The whole page."""
    machines = [section["machine"] for section in results.values()]
    shared = machines[0] if machines and all(m == machines[0] for m in machines) else None
    parts = [
        "# Benchmarks",
        "Written by `python tests/benchmarks/report.py`; one part of it is measured again with "
        "`--only`. Each figure is a ratio from one run in which ours and the peer took turns on "
        "the same machine. Nothing here was measured on a GPU.",
        *([machine_line(shared)] if shared else []),
        "## What was asked, and what was found",
        summary(findings(results)),
    ]
    for name, (title, render) in SECTIONS.items():
        parts.append(f"## {title}")
        if name not in results:
            parts.append("Not measured yet.")
            continue
        section = results[name]
        parts += [] if shared else [machine_line(section["machine"])]
        parts += render(section)
    return "\n\n".join(parts) + "\n"


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"The machine has {machine['cores']} cores ({machine['cpu']}), {versions}."


def summary(found: list[Finding]) -> str:
    """Of each claim the figure that is worst off, and how many others miss."""
    rows = []
    for claim in dict.fromkeys(finding.claim for finding in found):
        group = [finding for finding in found if finding.claim == claim]
        worst = max(group, key=lambda f: max(f.target.low - f.value, f.value - f.target.high))
        missed = sum(not f.target.met(f.value) for f in group)
        verdict = "yes" if not missed else f"**no**, {missed} of {len(group)} miss it"
        rows.append(
            (claim, worst.target.asked(), worst.target.shown(worst.value), worst.where, verdict)
        )
    return table(("figure", "asked", "worst", "where", "met"), rows)


def findings(results: Results) -> list[Finding]:
    """All figures that something was asked of."""
    found = []
    for row in results.get("loss", {}).get("time", []):
        where = f"{row['library']}, n = {row['n']:,}"
        found.append(Finding("loss / its matrix products", FLOOR, row["ours / floor"], where))
        if row["n"] in PEER_SIZES and "ours / open_clip" in row:
            found.append(Finding("loss / open_clip", PEER, row["ours / open_clip"], where))
        if "n / half" in row:
            found.append(Finding("time of n / time of n/2", DOUBLED, row["n / half"], where))
    for row in results.get("loss", {}).get("memory", []):
        where = f"{row['library']}, n = {row['n']:,}"
        found.append(Finding("extra memory of the loss", EXTRA, row["extra"] / 1e6, where))
    for row in results.get("large", {}).get("once", []):
        where = f"{row['library']}, n = {row['n']:,}"
        found.append(Finding("a process with a large batch", WHOLE, row["resident"] / 1e9, where))
    for row in results.get("ring", {}).get("rows", []):
        where = f"{CARRIERS[row['carrier']]}, n = {row['n']:,}"
        found.append(Finding(f"speedup of {row['ranks']} processes", RING, row["speedup"], where))
    for row in results.get("training_step", {}).get("rows", []):
        where, remat = f"{flags(row)}; {sizes_of(row)}", row["remat"] != "nothing"
        if not remat:
            found.append(Finding("training step / peer, time", STEP_TIME, row["time"], where))
        claim = f"training step{' with remat' if remat else ''} / peer, memory"
        target = REMAT_MEMORY if remat else STEP_MEMORY
        found.append(Finding(claim, target, row["memory"], where))
    return found


def loss(section: dict[str, Any]) -> list[str]:
    """The section on the time and the memory of the loss."""
    times = section["time"]
    peers = [row for row in times if "open_clip" in row]
    rows = [
        (
            row["library"],
            f"{row['n']:,}",
            f"{row['floor']:.3f}",
            f"{row['ours']:.3f}",
            FLOOR.shown(row["ours / floor"]),
            DOUBLED.shown(row["n / half"]) if "n / half" in row else "",
            f"{row['open_clip']:.3f}" if "open_clip" in row else "",
            peer_cell(row),
        )
        for row in times
    ]
    header = ("library", "pairs n", "floor s", "ours s", f"ours / floor ({FLOOR.asked()})")
    header += (f"time of n / of n/2 ({DOUBLED.asked()})", "open_clip s")
    sizes = " and ".join(f"{n:,}" for n in PEER_SIZES)
    header += (f"ours / open_clip ({PEER.asked()} at {sizes})",)
    memory = [
        (
            row["library"],
            f"{row['n']:,}",
            EXTRA.shown(row["extra"] / 1e6),
            f"{row['resident'] / 1e6:,.0f} MB" if "resident" in row else "",
        )
        for row in section["memory"]
    ]
    parts = [
        f"{measured_by(section)}: d = 768, float32, t = 10, b = −10, all cores, medians. The floor "
        "is the three matrix products of every tile and nothing else, in the same library and on "
        "the same tiles (1,024 rows and columns, on NumPy fewer where n is small). "
        "open_clip is differentiated by autograd. Bold figures miss what was asked.",
        table(header, rows),
        table(("library", "pairs n", f"extra memory ({EXTRA.asked()})", "in all"), memory),
    ]
    text = (
        "On NumPy an exponential and a logarithm for each pair are most of what is above the "
        "floor, and with few pairs the starting of threads. Extra memory is what the process grew "
        "by beside the two gradients, and for JAX the temporaries that XLA announces; it does not "
        "grow with n. 16-bit embeddings cost float32 copies of both gradients more."
    )
    if peers:
        last = peers[-1]
        text = (
            f"At n = {last['n']:,} the floor itself takes {last['floor'] / last['open_clip']:.2f} "
            f"of open_clip's time on Torch. open_clip holds several matrices of n × n. {text}"
        )
    return [*parts, text]


def peer_cell(row: dict[str, Any]) -> str:
    if "ours / open_clip" not in row:
        return ""
    value = row["ours / open_clip"]
    return PEER.shown(value) if row["n"] in PEER_SIZES else f"{value:.2f}"


def large(section: dict[str, Any]) -> list[str]:
    """The section on a batch as large as one process should hold."""
    rows = [
        (
            row["library"],
            f"{row['n']:,}",
            f"{row['seconds']:,.0f}",
            f"{4 * row['n'] * 768 * 4 / 1e9:.2f} GB",
            WHOLE.shown(row["resident"] / 1e9),
        )
        for row in section["once"]
    ]
    header = ("library", "pairs n", "seconds", "embeddings and gradients")
    return [
        f"{measured_by(section)}: the same loss and gradients once, in a process of its own, with "
        "its largest resident size, imports included.",
        table((*header, f"the whole process ({WHOLE.asked()})"), rows),
    ]


CARRIERS = {"mpi": "NumPy over MPI", "torch": "Torch over gloo"}


def ring(section: dict[str, Any]) -> list[str]:
    """The section on the ring."""
    rows = [
        (
            CARRIERS[row["carrier"]],
            row["ranks"],
            f"{row['n']:,}",
            f"{row['one']:.3f}",
            f"{row['ring']:.3f}",
            RING.shown(row["speedup"]),
        )
        for row in section["rows"]
    ]
    header = ("ring", "processes", "pairs n in all", "one process s", "ring s")
    return [
        f"{measured_by(section)}: the sigmoid loss and its gradients, d = 768, float32, one "
        "thread in each process. One process computes all pairs with the tiles that the ring "
        "uses, while the others sleep; then all of them share the work.",
        table((*header, f"speedup ({RING.asked()})"), rows),
    ]


PEERS = {
    "numpy": "Hugging Face `SiglipModel`, Torch eager",
    "torch": "Hugging Face `SiglipModel`, Torch eager",
    "jax": "`jax.value_and_grad` of the same forward, one jit",
}


def flags(row: dict[str, Any]) -> str:
    """Which training step it is."""
    remat = "" if row["remat"] == "nothing" else f", remat {row['remat']}"
    return f"{row['backend']}, microbatch {row['microbatch']}{remat}"


def sizes_of(row: dict[str, Any]) -> str:
    """The towers and the batch of a training step."""
    return f"{row['size']}/16, {row['batch']}"


def training_step(section: dict[str, Any]) -> list[str]:
    """The section on a whole training step."""
    rows = []
    for row in section["rows"]:
        remat = row["remat"] != "nothing"
        rows.append(
            (
                flags(row),
                PEERS[row["backend"]],
                sizes_of(row),
                row["rounds"],
                f"{row['time']:.2f}" if remat else STEP_TIME.shown(row["time"]),
                (REMAT_MEMORY if remat else STEP_MEMORY).shown(row["memory"]),
                f"{row['memory in all']:.2f}",
                f"{row['floor / peer']:.2f}" if "floor / peer" in row else "",
            )
        )
    memory = f"memory ({STEP_MEMORY.asked()}, with remat {REMAT_MEMORY.asked()})"
    header = ("ours", "peer", "towers, batch", "rounds", f"time ({STEP_TIME.asked()})", memory)
    return [
        "`python tests/benchmarks/training_step.py --backend … --size … --batch … --microbatch … "
        "--remat …`: forward, backward and AdamW in float32 on all cores, ours / peer, medians "
        "over the rounds. Memory is the peak over what the imports took, then with it; for JAX it "
        "is XLA's account of the compiled step. On either side parameters, gradients and two "
        "moments are in it. The last column is the time of our step's matrix products alone, in "
        "the same library and threads: the rest of a step has to fit between it and what was "
        "asked. Bold figures miss what was asked.",
        table((*header, "memory with imports", "our products / peer, time"), rows),
    ]


def gradient_error(section: dict[str, Any]) -> list[str]:
    """The section on precision."""
    rows = [
        (
            row["precision"],
            f"{row['loss scale']:g}",
            f"{row['loss']:.1e}",
            f"{row['median']:.1e}",
            f"{row['worst']:.1e}, `{row['worst leaf']}`",
        )
        for row in section["rows"]
    ]
    return [
        f"{measured_by(section)}: towers of S width and depth {section['depth']}, batch "
        f"{section['batch']}, Torch, against float64; ‖g − g64‖ / ‖g64‖ of each leaf. Parameters "
        "and images are rounded to the precision first, as in training.",
        table(("precision", "loss scale", "error of the loss", "median leaf", "worst leaf"), rows),
    ]


SECTIONS = {
    "loss": ("The sigmoid loss with its gradients", loss),
    "large": ("A large batch in one process", large),
    "ring": ("The ring", ring),
    "training_step": ("A training step", training_step),
    "gradient_error": ("Precision", gradient_error),
}


def measured_by(section: dict[str, Any]) -> str:
    """The commands that gave the figures."""
    return ", ".join(f"`{command}`" for command in section["commands"])


def table(header: tuple[Any, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def load() -> Results:
    """The stored results; none if there are none."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
