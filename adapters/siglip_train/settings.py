"""The settings of a run: one frozen record, from defaults, a TOML file and the command line.

Every field is a flag (`batch_size` is `--batch-size`) and a key of the TOML file. The effective
record is written into the run folder as `config.toml`, from which `--resume` reads it.
"""

import dataclasses
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w

import siglip_ref as sr

EMBEDDED = "emoji"
"""Name that stands for the data set inside this package."""


def _setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that a run depends on; the defaults train on the embedded emoji in minutes."""

    # data
    train: tuple[str, ...] = _setting(
        (EMBEDDED,), "training data: shards, a folder or caption file, or `emoji`"
    )
    validation: tuple[str, ...] = _setting(
        (EMBEDDED,), "validation data, in the same forms; an empty list for none"
    )
    caption_key: str = _setting("caption", "column or JSON key that holds the caption")
    captions: tuple[str, ...] = _setting(
        (), "caption templates such as '{name}, {keywords:3}'; by default the data decide"
    )
    tokenizer: str = _setting(EMBEDDED, "SentencePiece model file, or `emoji`")
    strict: bool = _setting(False, "make an unusable sample an error instead of a counted skip")
    augment: bool = _setting(True, "crop, turn and recolour the training images at random")
    flip: bool = _setting(False, "also mirror them (not for drawings with arrows or letters)")

    # model
    variant: str = _setting(
        "", "a released size such as B/16-224; the sizes below then do not count"
    )
    image_size: int = _setting(48, "side of the images in pixels")
    patch_size: int = _setting(8, "side of a patch in pixels")
    context_length: int = _setting(16, "tokens of a caption")
    width: int = _setting(128, "width of both towers")
    num_heads: int = _setting(4, "attention heads of both towers")
    image_depth: int = _setting(4, "blocks of the image tower")
    text_depth: int = _setting(2, "blocks of the text tower")

    # loss
    loss: Literal["sigmoid", "softmax"] = _setting("sigmoid", "sigmoid (SigLIP) or softmax (CLIP)")
    bias_init: str = _setting("prior", "initial b: a number, or `prior` for -log(batch size - 1)")
    temperature_init: float = _setting(10.0, "initial t = exp(t')")
    tile: int = _setting(0, "compute the loss in tiles of this size; 0 for whole")

    # optimization
    steps: int = _setting(660, "optimizer steps")
    batch_size: int = _setting(256, "pairs of a step")
    optimizer: Literal["adamw", "adafactor", "lion"] = _setting("adamw", "update rule")
    learning_rate: float = _setting(2e-3, "peak learning rate")
    weight_decay: float = _setting(
        1e-4, "decay of the kernels, not multiplied by the learning rate (big_vision)"
    )
    beta2: float = _setting(0.95, "decay of the second moment")
    clip_norm: float = _setting(1.0, "clip the global gradient norm to this; 0 for never")
    schedule: Literal["cosine", "linear", "rsqrt"] = _setting("cosine", "after the warmup")
    warmup: float = _setting(
        0.1, "linear warmup: a number of steps or, below 1, this part of all steps"
    )
    freeze: tuple[str, ...] = _setting((), "paths of parameters to keep, such as img/")
    ema: float = _setting(0.0, "decay of the average of parameters that is evaluated; 0 for none")
    init_from: str = _setting("", "checkpoint to start from: ours, or Hugging Face's safetensors")

    # run
    seed: int = _setting(0, "seed of everything random")
    backend: str = _setting("numpy", "array library to compute with: numpy, torch, jax or cupy")
    precision: Literal["float64", "float32", "bfloat16", "float16"] = _setting(
        "float32", "what the towers compute in; the parameters stay in float32"
    )
    communicator: str = _setting(
        "auto",
        "how devices share a batch: mpi, torch, cupy (NCCL, under mpiexec), none, or auto: mpi "
        "under mpiexec, torch under torchrun",
    )
    timeout: float = _setting(
        600.0, "seconds that a device waits for another one, which may be writing a checkpoint"
    )
    microbatch: int = _setting(32, "images, or texts, that a tower works on at a time; 0 for all")
    remat: Literal["nothing", "blocks", "towers"] = _setting("nothing", "what backward recomputes")
    workers: int = _setting(1, "threads that prepare batches")
    eval_every: int = _setting(165, "steps between evaluations; 0 for at the end only")
    checkpoint_every: int = _setting(165, "steps between checkpoints")
    keep: int = _setting(2, "checkpoints to keep")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "keep", "workers"):
            _check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("tile", "microbatch", "eval_every", "warmup", "seed", "clip_norm"):
            _check(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("learning_rate", "temperature_init", "timeout"):
            _check(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in ("beta2", "ema"):
            _check(0 <= getattr(self, name) < 1, name, "in [0, 1)", getattr(self, name))
        _check(
            self.batch_size >= 2,
            "batch_size",
            "at least 2, so that there are negatives",
            self.batch_size,
        )
        _check(bool(self.train), "train", "at least one source", self.train)
        _check(
            not self.variant or self.variant in sr.variants,
            "variant",
            f"one of {', '.join(sr.variants)}",
            self.variant,
        )
        _check(
            self.warmup_steps < self.steps,
            "warmup",
            f"shorter than {self.steps} steps",
            self.warmup,
        )
        self.initial_bias()

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warmup."""
        return int(self.warmup * self.steps if self.warmup < 1 else self.warmup)

    def initial_bias(self) -> float:
        """The value of b at step 0."""
        if self.bias_init == "prior":
            return sr.prior_bias(self.batch_size)
        try:
            return float(self.bias_init)
        except ValueError:
            raise ValueError(
                f"bias_init must be a number or `prior`, got {self.bias_init!r}"
            ) from None

    def model_config(self, vocab_size: int) -> sr.SiglipConfig:
        """The configuration of the model, for a tokenizer of this many ids.

        Raises ValueError if a released variant has a smaller vocabulary.
        """
        if self.variant:
            config = sr.variants[self.variant]
            _check(
                vocab_size <= config.text.vocab_size,
                "tokenizer",
                f"one of at most the {config.text.vocab_size} ids of {self.variant}",
                vocab_size,
            )
            return config
        sizes = {"width": self.width, "mlp_dim": 4 * self.width, "num_heads": self.num_heads}
        return sr.SiglipConfig(
            image=sr.ImageConfig(
                image_size=self.image_size,
                patch_size=self.patch_size,
                depth=self.image_depth,
                **sizes,
            ),
            text=sr.TextConfig(
                vocab_size=vocab_size,
                context_length=self.context_length,
                depth=self.text_depth,
                out_dim=self.width,
                **sizes,
            ),
        )

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, each checked against its type.

        Raises ValueError for an unknown field, TypeError for a value of the wrong type.
        """
        kinds = field_types()
        unknown = sorted(changes.keys() - kinds.keys())
        if unknown:
            raise ValueError(f"unknown settings {', '.join(unknown)}; there are {', '.join(kinds)}")
        return dataclasses.replace(
            self, **{name: _converted(name, value, kinds[name]) for name, value in changes.items()}
        )

    def to_toml(self) -> str:
        """The record as TOML, which `from_toml` reads back to an equal one."""
        return tomli_w.dumps(dataclasses.asdict(self))

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """The defaults, with what the file says.

        Raises ValueError, naming the file, if it cannot be read as settings.
        """
        try:
            return cls().replace(**tomllib.loads(path.read_text(encoding="utf-8")))
        except (
            OSError,
            UnicodeDecodeError,
            tomllib.TOMLDecodeError,
            ValueError,
            TypeError,
        ) as error:
            raise ValueError(f"config {path}: {error}") from error


def field_types() -> dict[str, Any]:
    """The type of each setting by name."""
    return typing.get_type_hints(Settings)


def choices(kind: Any) -> tuple[str, ...] | None:
    """The allowed values of a setting that has only some."""
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else None


def _converted(name: str, value: Any, kind: Any) -> Any:
    allowed = choices(kind)
    if allowed is not None:
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        return value
    if typing.get_origin(kind) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise TypeError(f"{name} must be a list of strings, got {value!r}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if name == "bias_init" and isinstance(value, (int, float)):
        return str(value)
    if type(value) is not kind:
        raise TypeError(f"{name} must be of type {kind.__name__}, got {value!r}")
    return value


def _check(holds: bool, name: str, wanted: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}, got {got!r}")
