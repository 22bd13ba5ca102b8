"""Build the emoji pack: `python -m siglip_train.emoji.build --sources DIR --out DIR`.

The first folder holds the archives that `npm pack PACKAGE@VERSION` makes of these packages, each
unpacked into a folder of its name beside it (`sources.py` says what is taken from which):

    cldr-annotations-full@48.2.0            @iconify-json/fxemoji@1.2.2
    cldr-annotations-derived-full@48.2.0    @iconify-json/emojione@1.2.3
    emojibase-data@17.0.0                   @iconify-json/fluent-emoji-flat@1.2.6
    @iconify-json/noto@1.2.9                @iconify-json/twemoji@1.2.5
    @iconify-json/noto-v1@1.2.5             @lobehub/fluent-emoji-3d@1.1.0

Needs the extra `emoji-build`. With the versions in `constraints.txt` the build is the same to the
last byte.

Concepts are split by the hash of their base name: nine in ten are seen in training, one in ten is
not. Training shards hold the seen concepts as drawn by every vendor but Twemoji, validation shards
all concepts as drawn by Twemoji. Other vendors' drawings of unseen concepts are left out.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import sentencepiece

from siglip_train.emoji.concepts import is_seen, read_concepts
from siglip_train.emoji.drawings import Drawing, read_drawings
from siglip_train.emoji.sources import RENDERED, SOURCES, VECTORS, archive, check_sources

UNSEEN_VENDOR = "twemoji"
SHARD_SAMPLES = 2000
WEBP_QUALITY = 82
VOCABULARY = 3000


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=Path, required=True, help="folder with the packages")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the pack into")
    args = parser.parse_args()
    check_sources(args.sources)
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
            write(args.out / name, shard(part))
            shards[name] = {"samples": len(part), "sha256": sha256(args.out / name)}
    write(args.out / "tokenizer.model", train_tokenizer(splits["train"]))
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
    write(args.out / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())


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
    return {
        **drawing.concept._asdict(),
        "vendor": drawing.vendor,
        "style": drawing.style,
        "seen": is_seen(drawing.concept.concept),
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


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def sha256(path: Path) -> str:
    """The hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
