"""On the device the core and the adapter give the numbers of NumPy, and conform to the vectors."""

from cupy_cases.core import *  # noqa: F403  (the tests, which the stand-in runs too)
from cupy_cases.products import *  # noqa: F403
from cupy_cases.tile_loop import *  # noqa: F403
from cupy_cases.vectors import *  # noqa: F403
