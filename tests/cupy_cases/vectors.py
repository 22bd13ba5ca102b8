"""The vectors of the conformance kit."""

import pytest

from cupy_cases.numbers import of_every_dtype
from siglip_spec import check_subject
from subjects.cupy import cupy_subjects


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("profile", ["loss", "primitives", "accuracy", "image", "text", "model"])
@of_every_dtype
def test_it_conforms_to_the_vectors(profile, dtype, cupy_backend):
    subject = {s.dtype: s for s in cupy_subjects(cupy_backend)}[dtype]
    report = check_subject(subject, profile)
    failures = [record for record in report.records if record.status == "failed"]
    assert report.ok, [(record.check, record.message, record.findings) for record in failures]
    assert report.counts()["passed"]
    assert max(record.score or 0.0 for record in report.records) < 0.5
