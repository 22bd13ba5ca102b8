"""Build the emoji pack: `python -m siglip_train.emoji.build SOURCES OUT`.

SOURCES is a folder with the archives that `npm pack` makes of the packages in `sources.py`, each
unpacked into a folder of its name beside it. Needs the extra `emoji-build`. With the versions in
`constraints.txt` the build is the same to the last byte.

Concepts are split by the hash of their base name: nine in ten are seen in training, one in ten is
not. Training shards hold the seen concepts as drawn by every vendor but Twemoji, validation shards
all concepts as drawn by Twemoji. Other vendors' drawings of unseen concepts are left out.
"""

import argparse
import gzip
import hashlib
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import sentencepiece

from siglip_train.emoji.sources import (
    RENDERED,
    SOURCES,
    VECTORS,
    Drawing,
    archive,
    read_concepts,
    read_drawings,
)

UNSEEN_VENDOR = "twemoji"
SHARD_SAMPLES = 2000
WEBP_QUALITY = 82
VOCABULARY = 3000


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, help="folder with the unpacked source packages")
    parser.add_argument("out", type=Path, help="folder to write the pack into")
    args = parser.parse_args()
    concepts = read_concepts(args.sources)
    # By concept, so that the compressor finds equal captions near each other.
    drawings = sorted(
        read_drawings(args.sources, concepts),
        key=lambda drawing: (drawing.concept.codepoints, drawing.vendor, drawing.style),
    )
    splits = {
        "train": [d for d in drawings if d.vendor != UNSEEN_VENDOR and is_seen(d.concept.concept)],
        "validation": [d for d in drawings if d.vendor == UNSEEN_VENDOR],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    shards = {}
    for split, samples in splits.items():
        for number, start in enumerate(range(0, len(samples), SHARD_SAMPLES)):
            name = f"{split}-{number:03d}.tar.gz"
            part = samples[start : start + SHARD_SAMPLES]
            (args.out / name).write_bytes(shard(part))
            shards[name] = {"samples": len(part), "sha256": sha256(args.out / name)}
    (args.out / "tokenizer.model").write_bytes(train_tokenizer(splits["train"]))
    manifest = {
        "sources": [
            {**source._asdict(), "sha256": sha256(archive(args.sources, source))}
            for source in SOURCES
        ],
        "vendors": {
            f"{vendor} {style}": source.licence
            for (vendor, style), source in (VECTORS | RENDERED).items()
        },
        "counts": {split: counts(samples) for split, samples in splits.items()},
        "shards": shards,
        "tokenizer": {
            "pieces": VOCABULARY,
            "sha256": sha256(args.out / "tokenizer.model"),
        },
    }
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def is_seen(concept: str) -> bool:
    """Whether a concept is in the training split: nine in ten are."""
    return int(hashlib.sha256(concept.encode()).hexdigest(), 16) % 10 != 0


def shard(drawings: list[Drawing]) -> bytes:
    """A gzipped tar with a picture and a JSON record for each drawing, the same bytes each time."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for drawing in drawings:
            key = f"{drawing.concept.codepoints}-{drawing.vendor}-{drawing.style}"
            image = io.BytesIO()
            drawing.image.save(image, "WEBP", quality=WEBP_QUALITY, method=6)
            record = json.dumps(metadata(drawing), separators=(",", ":")).encode()
            for suffix, data in (("json", record), ("webp", image.getvalue())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def metadata(drawing: Drawing) -> dict[str, Any]:
    """The JSON record of a drawing."""
    seen = is_seen(drawing.concept.concept)
    return {
        **drawing.concept._asdict(),
        "vendor": drawing.vendor,
        "style": drawing.style,
        "seen": seen,
    }


def counts(drawings: list[Drawing]) -> dict[str, Any]:
    """How many drawings, concepts and names there are, and drawings by vendor and style."""
    return {
        "drawings": len(drawings),
        "names": len({drawing.concept.name for drawing in drawings}),
        "concepts": len({drawing.concept.concept for drawing in drawings}),
        "seen drawings": sum(is_seen(drawing.concept.concept) for drawing in drawings),
        "by vendor": dict(
            sorted(Counter(f"{drawing.vendor} {drawing.style}" for drawing in drawings).items())
        ),
    }


def train_tokenizer(drawings: list[Drawing]) -> bytes:
    """A byte-pair SentencePiece model of the captions, with T5's ids: pad 0, </s> 1, unknown 2."""
    concepts = {drawing.concept.codepoints: drawing.concept for drawing in drawings}.values()
    texts: list[str] = []
    for concept in concepts:
        texts += [concept.name, f"a drawing of {concept.name}", f"an emoji of {concept.name}"]
        texts += [f"a picture of {concept.name}", ", ".join([concept.name, *concept.keywords])]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        normalization_rule_name="nmt_nfkc_cf",
        byte_fallback=True,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def sha256(path: Path) -> str:
    """The hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
