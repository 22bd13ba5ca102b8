"""Texts to token ids, as big_vision prepares them for SigLIP, with a SentencePiece model."""

import hashlib
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import sentencepiece

SIGLIP_VOCABULARY_SHA256 = "1e5036bed065526c3c212dfbe288752391797c4bb1a284aa18c9a0b23fcaf8ec"
"""Of the English SigLIP vocabulary (c4_en): `spiece.model` of the released checkpoints."""

SIGLIP_VOCABULARY_BYTES = 798_330
"""Length of that file. It holds 32 000 pieces, with ids <pad> 0, </s> 1, <unk> 2."""

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Tokenizer:
    """Rows of `context_length` ids: `lower(text)` in pieces, then EOS, then padding.

    EOS is sticky: of a text with too many pieces the first context_length - 1 stay, and the last
    id is EOS. `pad` says what fills a short row:

    - `"eos"` (SigLIP): EOS itself, so that the last id of every row, where the text tower is
      pooled, is EOS;
    - `"pad"` (SigLIP 2): the model's own pad id, so that a short text is pooled at a pad.

    Lower-casing is that of big_vision, `tf.strings.lower` with its default encoding: A-Z only.
    Transformers' SigLIP tokenizer lowers all of Unicode instead, so the two differ on "É".
    SentencePiece itself normalises with the rule stored in the model (NFKC-like; no case folding).

    Source: big_vision `pp/ops_text.py` (`tokenize`, eos "sticky"; pad_value 1 in SigLIP's configs).

    Raises ValueError if the file cannot be read or is no SentencePiece model, if the model has no
    EOS (or no pad, where that is asked for), and if context_length is below 1.
    """

    def __init__(
        self, model: Path, context_length: int, *, pad: Literal["eos", "pad"] = "eos"
    ) -> None:
        if context_length < 1:
            raise ValueError(f"context_length must be at least 1, got {context_length}")
        if pad not in ("eos", "pad"):
            raise ValueError(f"pad must be 'eos' or 'pad', got {pad!r}")
        self.context_length = context_length
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(_read(model))
        except RuntimeError as error:
            raise ValueError(f"tokenizer {model} is not a SentencePiece model") from error
        self._eos = self._pieces.eos_id()
        self._pad = self._eos if pad == "eos" else self._pieces.pad_id()
        for name, identity in (("end-of-text", self._eos), ("pad", self._pad)):
            if identity < 0:
                raise ValueError(f"tokenizer {model} has no {name} piece")

    @property
    def vocab_size(self) -> int:
        """Number of ids: all that `encode` gives are below it."""
        return int(self._pieces.GetPieceSize())

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """Ids of `texts`, (n, context_length).

        Raises TypeError for one string in place of several.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts must be a sequence of strings, got the string {texts!r}")
        ids = np.full((len(texts), self.context_length), self._pad, np.int32)
        pieces = self._pieces.Encode([_lower(text) for text in texts], num_threads=1)
        for row, found in zip(ids, pieces, strict=True):
            kept = found[: self.context_length - 1]
            row[: len(kept)] = kept
            row[len(kept)] = self._eos
        return ids


def canonicalize(text: str) -> str:
    """`text` without ASCII punctuation, lower-cased, with "_" and runs of whitespace as one space.

    Punctuation goes without leaving a space: "RED-GOLD" becomes "redgold". big_vision does this to
    zero-shot prompts (keeping "," in the names of classes), not to training captions; the
    tokenizer does not do it.

    Source: big_vision `evaluators/proj/image_text/prompt_engineering.py`.
    """
    plain = text.replace("_", " ").translate(_NO_PUNCTUATION).lower()
    return re.sub(r"\s+", " ", plain).strip()


def check_siglip_vocabulary(model: Path) -> None:
    """Check that `model` is the vocabulary of the English SigLIP checkpoints, byte by byte.

    Another model gives ids that mean other words to their text tower, without any error.

    Raises ValueError if it is not, or cannot be read.
    """
    content = _read(model)
    found = hashlib.sha256(content).hexdigest()
    if found != SIGLIP_VOCABULARY_SHA256:
        raise ValueError(
            f"tokenizer {model} is not SigLIP's English vocabulary (spiece.model): wanted "
            f"{SIGLIP_VOCABULARY_BYTES} bytes with sha256 {SIGLIP_VOCABULARY_SHA256}, got "
            f"{len(content)} bytes with sha256 {found}"
        )


def _read(model: Path) -> bytes:
    try:
        return Path(model).read_bytes()
    except OSError as error:
        raise ValueError(f"tokenizer {model} cannot be read: {error.strerror}") from error


def _lower(text: str) -> str:
    return text.encode().lower().decode()
