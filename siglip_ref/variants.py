"""The released SigLIP and SigLIP 2 sizes, by name.

`B/16-224` is SigLIP, `v2-B/16-224` SigLIP 2; the number behind the dash is the image size in
pixels. `i18n` has the multilingual vocabulary. `naflex` stands for the SigLIP 2 checkpoints with
free aspect ratio, given here at the 16 x 16 grid on which their position embedding is stored.

Source: big_vision, `models/vit.py` (`decode_variant`) and the demo notebooks; SigLIP's own
parameter counts follow from these shapes and are asserted in the tests.
"""

from siglip_ref.config import ImageConfig, SiglipConfig, TextConfig

_TOWERS = {  # width, depth, mlp_dim, num_heads
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "g-opt": (1536, 40, 6144, 16),
}


def _variant(
    size: str,
    patch_size: int,
    image_size: int,
    vocab_size: int,
    *,
    text: str = "",
    context_length: int = 64,
    head: bool = True,
) -> SiglipConfig:
    width, depth, mlp_dim, num_heads = _TOWERS[size]
    text_width, text_depth, text_mlp_dim, text_num_heads = _TOWERS[text or size]
    return SiglipConfig(
        image=ImageConfig(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            depth=depth,
            mlp_dim=mlp_dim,
            num_heads=num_heads,
        ),
        text=TextConfig(
            vocab_size=vocab_size,
            context_length=context_length,
            width=text_width,
            depth=text_depth,
            mlp_dim=text_mlp_dim,
            num_heads=text_num_heads,
            out_dim=width if head else None,
        ),
    )


_C4_EN, _MC4, _GEMMA = 32_000, 250_000, 256_000

variants: dict[str, SiglipConfig] = {
    **{f"B/16-{pixels}": _variant("B", 16, pixels, _C4_EN) for pixels in (224, 256, 384, 512)},
    "B/16-256-i18n": _variant("B", 16, 256, _MC4),
    **{f"L/16-{pixels}": _variant("L", 16, pixels, _C4_EN) for pixels in (256, 384)},
    "So400m/14-224": _variant("So400m", 14, 224, _C4_EN, context_length=16),
    "So400m/14-384": _variant("So400m", 14, 384, _C4_EN),
    "So400m/16-256-i18n": _variant("So400m", 16, 256, _MC4, head=False),
    "v2-B/32-256": _variant("B", 32, 256, _GEMMA),
    **{f"v2-B/16-{pixels}": _variant("B", 16, pixels, _GEMMA) for pixels in (224, 256, 384, 512)},
    "v2-B/16-naflex": _variant("B", 16, 256, _GEMMA),
    **{f"v2-L/16-{pixels}": _variant("L", 16, pixels, _GEMMA) for pixels in (256, 384, 512)},
    **{f"v2-So400m/14-{pixels}": _variant("So400m", 14, pixels, _GEMMA) for pixels in (224, 384)},
    **{
        f"v2-So400m/16-{pixels}": _variant("So400m", 16, pixels, _GEMMA)
        for pixels in (256, 384, 512)
    },
    "v2-So400m/16-naflex": _variant("So400m", 16, 256, _GEMMA),
    **{
        f"v2-g-opt/16-{pixels}": _variant("g-opt", 16, pixels, _GEMMA, text="So400m")
        for pixels in (256, 384)
    },
}
