"""The embedded image-text data: drawings of emoji with their names and keywords.

About 1,700 concepts as five vendors draw them for training, and all concepts as a sixth vendor
(Twemoji) draws them for validation, at 64 x 64 pixels, with a tokenizer trained on the captions.
`build.py` makes the files, `manifest.json` says from what, `NOTICE` under which licences.
"""

from importlib.resources import files
from pathlib import Path

FOLDER = Path(str(files(__name__)))


def train_shards() -> list[Path]:
    """Shards with the drawings of five vendors, of concepts marked `seen`."""
    return sorted(FOLDER.glob("train-*.tar.gz"))


def validation_shards() -> list[Path]:
    """Shards with the drawings of Twemoji, of seen and of unseen concepts."""
    return sorted(FOLDER.glob("validation-*.tar.gz"))


def tokenizer_path() -> Path:
    """The SentencePiece model trained on the captions of the training shards."""
    return FOLDER / "tokenizer.model"
