"""What runs of `siglip-train` end with, and whether two of them end alike."""

from pathlib import Path

import numpy as np

import siglip_ref as sr
from siglip_train.checkpoints import latest_checkpoint, load_checkpoint


def final_params(folder: Path) -> dict[str, np.ndarray]:
    """The leaves of a run's last checkpoint by path."""
    return sr.tree.flatten(load_checkpoint(latest_checkpoint(folder))[0])


def assert_close_params(folder: Path, wanted: Path, rtol: float, atol: float) -> None:
    """Two runs end with the same leaves, of the same dtypes, within these bounds."""
    found, want = final_params(folder), final_params(wanted)
    assert found.keys() == want.keys()
    for path, leaf in want.items():
        assert found[path].dtype == leaf.dtype, path
        np.testing.assert_allclose(found[path], leaf, rtol=rtol, atol=atol, err_msg=path)
