"""open_clip's `SigLipLoss` and `ClipLoss` in one process, differentiated by autograd.

Only the file of the losses is loaded: the package itself imports torchvision.
"""

import importlib.metadata
import importlib.util
import os
import sys

import pytest

from backends import library
from siglip_spec import Subject, autodiff

SOURCE = "https://github.com/mlfoundations/open_clip/blob/v3.3.0/src/open_clip/loss.py"
_LOADED = "open_clip_loss"


def losses():
    """The module `open_clip.loss`; without it the test is skipped, and under CI=true it fails."""
    library("torch")
    if _LOADED not in sys.modules:
        spec = importlib.util.spec_from_file_location(_LOADED, _location())
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[_LOADED] = module
    return sys.modules[_LOADED]


def _location():
    try:
        files = importlib.metadata.files("open_clip_torch") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix() == "open_clip/loss.py":
            return file.locate()
    reason = "open_clip_torch is not installed: pip install --no-deps open_clip_torch"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (CI=true allows no skip)")
    pytest.skip(reason)
    raise AssertionError


def open_clip(dtype: str) -> Subject:
    """Both losses, on all the pairs at once."""
    loss = losses()
    subject = Subject("open_clip losses", dtype=dtype, vjp=autodiff.torch)

    @subject.provides("sigmoid_loss")
    def sigmoid_loss(zimg, ztxt, t_prime, b):
        return loss.SigLipLoss()(zimg, ztxt, t_prime.exp(), b)

    @subject.provides("softmax_loss")
    def softmax_loss(zimg, ztxt, t_prime):
        return loss.ClipLoss()(zimg, ztxt, t_prime.exp())

    return subject
