"""What a SigLIP model is, apart from its parameters: sizes and the constants of its formulas.

Every default that touches a result stands here and nowhere else.
"""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """The image tower: square images, patches, a pre-LN transformer, attention pooling.

    Sizes are counted in pixels (`image_size`, `patch_size`) and channels (the others).
    Pixels beyond the last whole patch are dropped: 384 / 14 gives 27 x 27 patches.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_sizes(self)
        if self.patch_size > self.image_size:
            raise ValueError(
                f"patch_size must be at most image_size = {self.image_size}, got {self.patch_size}"
            )

    @property
    def grid(self) -> int:
        """Whole patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Tokens of the image tower."""
        return self.grid**2


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The text tower: token table, a pre-LN transformer without any mask, last-token pooling.

    `out_dim=None` means no head: the pooled token of size `width` is the embedding, as in
    So400m/16-256-i18n.
    """

    vocab_size: int
    context_length: int
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    out_dim: int | None
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_sizes(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiglipConfig:
    """Two towers that meet in one embedding space of `embed_dim` dimensions.

    `l2_norm_eps` is added to the norm of an embedding before it is divided by it, as big_vision
    does; Hugging Face's `SiglipModel` has 0.
    """

    image: ImageConfig
    text: TextConfig
    l2_norm_eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.text_embed_dim != self.embed_dim:
            wanted = "text.width" if self.text.out_dim is None else "text.out_dim"
            raise ValueError(
                f"{wanted} must equal image.width = {self.embed_dim}, got {self.text_embed_dim}"
            )

    @property
    def embed_dim(self) -> int:
        """Size of `zimg`: the image tower has no projection, so it is its width."""
        return self.image.width

    @property
    def text_embed_dim(self) -> int:
        """Size of `ztxt`."""
        return self.text.width if self.text.out_dim is None else self.text.out_dim


def _check_sizes(config: ImageConfig | TextConfig) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name == "layer_norm_eps" or (field.name == "out_dim" and value is None):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{field.name} must be a positive integer, got {value!r}")
    if config.width % config.num_heads:
        raise ValueError(
            f"width must be a multiple of num_heads = {config.num_heads}, got {config.width}"
        )
