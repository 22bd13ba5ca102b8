"""Reports of runs that never took place."""

import math

from hypothesis import strategies as st

from siglip_spec.runner import STATUSES, Record, Report

CASE = "loss.sigmoid/n7-d5/init-bias"
BUG = "MeanOverPairs"


def record(tensor="grad/dzimg", status="passed", case=CASE, **fields):
    facts = {"profile": "loss", "operation": "sigmoid_loss", "clauses": ("LOSS-3",)}
    return Record(
        f"{case}[{tensor}]", case, tensor, dtype="float32", status=status, **facts | fields
    )


def passing(tensor="grad/dzimg", score=0.12, **fields):
    numbers = {"worst_index": (3, 1), "got": 1.0, "want": 1.0, "tolerance": 1e-6}
    return record(tensor, score=score, **numbers | fields)


def wrong(tensor="grad/dzimg", score=7.1e4, **fields):
    numbers = {"worst_index": (3, 1), "got": -1.3021e-5, "want": -9.1147e-5, "tolerance": 1.1e-9}
    return record(tensor, "failed", score=score, message="wrong", **numbers | fields)


def report(*records, **fields):
    facts = {
        "subject": "acme 2.1",
        "dtype": "float32",
        "profiles": ("loss",),
        "spec_version": "1.0",
        "vectors_version": "1.0.0",
        "vectors_sha256": "3f2c9a1be07d" + "0" * 52,
        "lam": 8.0,
    }
    return Report(**facts | fields, records=records)


def of_everything():
    return report(
        passing("out/loss"),
        passing("grad/dt_prime", 0.4),
        wrong("grad/dzimg", suspected=BUG),
        wrong("grad/dztxt", 1.2e3, suspected=BUG),
        wrong("grad/db", 3.0, suspected=BUG),
        record("out/loss", "expected", "loss.tiled/n4", reason="no tiles, acme#12", score=5.0),
        record("out/loss", "not claimed", "loss.softmax/n3", reason="softmax_loss is not provided"),
    )


ANY_FLOATS = st.floats()
SCORES = st.floats(min_value=0) | st.just(math.nan)
FACTS = {
    "tensor": st.sampled_from(["out/loss", "grad/dzimg", "grad/dparams/ln_0/scale", "rejected"]),
    "case": st.sampled_from([CASE, "loss.tiled/n4", "loss.softmax/n3-d2"]),
    "findings": st.lists(st.text(), max_size=2).map(tuple),
    "suspected": st.none() | st.sampled_from([BUG, "BiasSign"]),
    "reason": st.none() | st.text(),
    "clauses": st.sampled_from([("LOSS-1",), ("LOSS-3", "GRAD-1"), ("XYZ-9",), ()]),
    "seconds": st.floats(0, 1),
}
UNCOMPARED = st.builds(
    record,
    **FACTS,
    status=st.sampled_from(STATUSES),
    score=st.none() | SCORES,
    message=st.text(),
)
COMPARED = st.builds(
    wrong,
    **FACTS,
    score=SCORES,
    worst_index=st.just(()) | st.lists(st.integers(0, 9999), max_size=5).map(tuple),
    got=ANY_FLOATS,
    want=ANY_FLOATS,
    tolerance=ANY_FLOATS,
)
REPORTS = st.lists(UNCOMPARED | COMPARED, max_size=8).map(lambda records: report(*records))
