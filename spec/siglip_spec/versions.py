"""Three versions that change for different reasons; the third, of the formats, is in the files."""

SPEC_VERSION = "0.1"
"""Of the written clauses: a clause that changes its meaning raises the first number."""

VECTORS_VERSION = "0.1.0"
"""Of the set of cases: an id is never used again for another question."""
