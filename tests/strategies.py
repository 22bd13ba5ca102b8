"""What Hypothesis draws: shapes with all sizes distinct, and every operation of the core on them.

A transposed or mixed-up axis cannot pass where no two sizes agree. Shapes and a seed are drawn,
the numbers come from the seed: Hypothesis has nothing to gain from shrinking 200 floats.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

import siglip_ref as sr
from derivatives import Case
from siglip_ref import encoders, losses, primitives
from siglip_ref.tree import unflatten

EPS = 1e-6

seeds = st.integers(0, 2**32 - 1)


def distinct(*names: str, least: int = 1, most: int = 7, **bounds: int) -> Any:
    """Sizes by name, no two alike, each within [least, most]; `name=bound` raises one's least."""
    sizes = st.lists(
        st.integers(least, most), min_size=len(names), max_size=len(names), unique=True
    )
    return sizes.map(lambda drawn: dict(zip(names, drawn, strict=True))).filter(
        lambda drawn: all(drawn[name] >= bound for name, bound in bounds.items())
    )


def unit_rows(rng: np.random.Generator, n: int, d: int) -> Any:
    """Random directions: rows of norm 1."""
    rows = rng.standard_normal((n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def spread_rows(rng: np.random.Generator, *shape: int) -> Any:
    """Rows of mean in [-1, 1] and deviation in [0.5, 2], where differences resolve a layer norm."""
    rows = rng.standard_normal(shape)
    rows = rows - rows.mean(axis=-1, keepdims=True)
    rows = rows / rows.std(axis=-1, keepdims=True)
    per_row = (*shape[:-1], 1)
    return rows * rng.uniform(0.5, 2, per_row) + rng.uniform(-1, 1, per_row)


def dense_params(rng: np.random.Generator, d_in: int, d_out: int) -> Any:
    """A kernel that keeps the scale of what it maps, and a bias."""
    kernel = rng.standard_normal((d_in, d_out)) / np.sqrt(d_in)
    return {"kernel": kernel, "bias": rng.standard_normal(d_out)}


def norm_params(rng: np.random.Generator, d: int) -> Any:
    """Neither ones nor zeros."""
    return {"scale": rng.uniform(0.5, 2, d), "bias": rng.standard_normal(d)}


def attention_params(rng: np.random.Generator, d: int) -> Any:
    """The four maps."""
    return {name: dense_params(rng, d, d) for name in ("query", "key", "value", "out")}


def mlp_params(rng: np.random.Generator, d: int, f: int) -> Any:
    """Both layers."""
    return {"dense_0": dense_params(rng, d, f), "dense_1": dense_params(rng, f, d)}


def block_params(rng: np.random.Generator, d: int, f: int) -> Any:
    """A block of random parameters."""
    return {
        "ln_0": norm_params(rng, d),
        "attn": attention_params(rng, d),
        "ln_1": norm_params(rng, d),
        "mlp": mlp_params(rng, d, f),
    }


def random_params(config: sr.SiglipConfig, rng: np.random.Generator) -> Any:
    """Float64 parameters of a model, every one random: no bias is 0 and no scale is 1."""
    drawn = {}
    for path, shape in sr.param_shapes(config).items():
        x = rng.standard_normal(shape)
        if path.endswith("kernel"):
            x = x / np.sqrt(shape[0])
        elif path.endswith("scale"):
            x = rng.uniform(0.5, 2, shape)
        drawn[path] = x
    return unflatten({**drawn, "t_prime": np.asarray(1.5), "b": np.asarray(-2.5)})


def tower_configs(
    *, layers: int = 2, leftover: int = 3, h: int = 2, k: int = 3, f: int = 7, v: int = 11
) -> sr.SiglipConfig:
    """Two small towers of width h·k on 2 x 2 patches of 4 pixels, `leftover` pixels dropped."""
    d = h * k
    sizes: dict[str, Any] = {"width": d, "depth": layers, "mlp_dim": f, "num_heads": h}
    return sr.SiglipConfig(
        image=sr.ImageConfig(image_size=8 + leftover, patch_size=4, **sizes),
        text=sr.TextConfig(vocab_size=v, context_length=5, out_dim=d, **sizes),
    )


class Operation(NamedTuple):
    """A way to make cases: `make(rng, **sizes)`, drawn sizes, and sizes for a fixed case."""

    make: Callable[..., Case]
    sizes: Any
    fixed: dict[str, int]

    def draw(self, data: Any) -> tuple[Case, np.random.Generator]:
        """A drawn case, and a generator for what else the test needs at random."""
        # Not made inside a strategy: the run-time type checks of the tests use `random`.
        sizes, rng = data.draw(self.sizes), np.random.default_rng(data.draw(seeds))
        return self.make(rng, **sizes), rng

    def example(self) -> Case:
        """The fixed case."""
        return self.make(np.random.default_rng(0), **self.fixed)


def _dense(rng: Any, n: int, m: int, d_in: int, d_out: int) -> Case:
    inputs = {"x": rng.standard_normal((n, m, d_in)), "params": dense_params(rng, d_in, d_out)}
    return Case(primitives.dense_fwd, primitives.dense_bwd, inputs)


def _layer_norm(rng: Any, n: int, m: int, d: int) -> Case:
    inputs = {"x": spread_rows(rng, n, m, d), "params": norm_params(rng, d)}
    return Case(partial(primitives.layer_norm_fwd, eps=EPS), primitives.layer_norm_bwd, inputs)


def _elementwise(name: str, rng: Any, n: int, m: int) -> Case:
    inputs = {"x": 3 * rng.standard_normal((n, m))}
    return Case(getattr(primitives, f"{name}_fwd"), getattr(primitives, f"{name}_bwd"), inputs)


def _softmax(rng: Any, n: int, m: int, d: int) -> Case:
    inputs = {"x": 2 * rng.standard_normal((n, m, d))}
    return Case(primitives.softmax_fwd, primitives.softmax_bwd, inputs)


def _l2_normalize(rng: Any, n: int, m: int, d: int) -> Case:
    lengths = rng.uniform(0.5, 2, (n, m, 1))
    inputs = {"x": lengths * unit_rows(rng, n * m, d).reshape(n, m, d)}
    # A large eps, so that its place in the formula shows.
    return Case(partial(primitives.l2_normalize_fwd, eps=0.1), primitives.l2_normalize_bwd, inputs)


def _patch_embed(rng: Any, n: int, rows: int, columns: int, d: int, p: int, leftover: int) -> Case:
    c = 2
    images = rng.uniform(-1, 1, (n, rows * p + leftover % p, columns * p + (leftover + 1) % p, c))
    inputs = {"images": images, "params": dense_params(rng, p * p * c, d)}
    return Case(primitives.patch_embed_fwd, primitives.patch_embed_bwd, inputs)


def _embed(rng: Any, n: int, m: int, d: int, v: int) -> Case:
    tokens = rng.integers(0, v, (n, m))
    inputs = {"embedding": rng.standard_normal((v, d))}

    def forward(embedding: Any) -> Any:
        return primitives.embed_fwd(_ints_like(tokens, embedding), embedding)

    return Case(forward, primitives.embed_bwd, inputs)


def _dot_product_attention(rng: Any, n: int, h: int, m: int, k: int, tokens: int) -> Case:
    shapes = {"query": (n, h, tokens, k), "key": (n, h, m, k), "value": (n, h, m, k)}
    inputs = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return Case(primitives.dot_product_attention_fwd, primitives.dot_product_attention_bwd, inputs)


def _multi_head_attention(rng: Any, n: int, h: int, m: int, k: int, tokens: int) -> Case:
    d = h * k
    inputs = {
        "x": rng.standard_normal((n, tokens, d)),
        "y": rng.standard_normal((n, m, d)),
        "params": attention_params(rng, d),
    }
    forward = partial(primitives.multi_head_attention_fwd, num_heads=h)
    return Case(forward, primitives.multi_head_attention_bwd, inputs)


def _mlp(rng: Any, n: int, m: int, d: int, f: int) -> Case:
    inputs = {"x": rng.standard_normal((n, m, d)), "params": mlp_params(rng, d, f)}
    return Case(encoders.mlp_fwd, encoders.mlp_bwd, inputs)


def _block(rng: Any, n: int, m: int, h: int, k: int, f: int) -> Case:
    inputs = {"x": spread_rows(rng, n, m, h * k), "params": block_params(rng, h * k, f)}
    forward = partial(encoders.block_fwd, num_heads=h, eps=EPS)
    return Case(forward, encoders.block_bwd, inputs)


def _map_head(rng: Any, n: int, m: int, h: int, k: int, f: int) -> Case:
    d = h * k
    params = {
        "probe": rng.standard_normal((1, d)),
        "attn": attention_params(rng, d),
        "ln": norm_params(rng, d),
        "mlp": mlp_params(rng, d, f),
    }
    forward = partial(encoders.map_head_fwd, num_heads=h, eps=EPS)
    inputs = {"tokens": spread_rows(rng, n, m, d), "params": params}
    return Case(forward, encoders.map_head_bwd, inputs)


def _encoder(rng: Any, n: int, m: int, layers: int) -> Case:
    config = tower_configs(layers=layers).text
    params = random_params(tower_configs(layers=layers), rng)["txt"]
    inputs = {
        "x": spread_rows(rng, n, m, config.width),
        "params": {name: params[name] for name in ("block", "encoder_norm")},
    }

    def backward(res: Any, dout: Any) -> Any:
        dx, blocks, norm = encoders.encoder_bwd(res, dout, config)
        return dx, {"block": blocks, "encoder_norm": norm}

    return Case(partial(encoders.encoder_fwd, config=config), backward, inputs)


def _image(rng: Any, n: int, leftover: int, h: int, k: int, f: int) -> Case:
    config = tower_configs(layers=1, leftover=leftover, h=h, k=k, f=f)
    size = config.image.image_size
    inputs = {
        "images": rng.uniform(-1, 1, (n, size, size, 3)),
        "params": random_params(config, rng)["img"],
    }
    forward = partial(encoders.image_fwd, config=config.image)
    return Case(forward, partial(encoders.image_bwd, config=config.image), inputs)


def _text(rng: Any, n: int, h: int, k: int, f: int) -> Case:
    config = tower_configs(layers=1, h=h, k=k, f=f)
    tokens = rng.integers(0, config.text.vocab_size, (n, config.text.context_length))
    inputs = {"params": random_params(config, rng)["txt"]}

    def forward(params: Any) -> Any:
        ids = _ints_like(tokens, params["embed"]["embedding"])
        return encoders.text_fwd(ids, params, config.text)

    return Case(forward, partial(encoders.text_bwd, config=config.text), inputs)


def _scaled_cosine(rng: Any, n: int, m: int, d: int) -> Case:
    inputs = {
        "zimg": unit_rows(rng, n, d),
        "ztxt": unit_rows(rng, m, d),
        "t_prime": np.asarray(rng.uniform(0, 2)),
    }
    return Case(primitives.scaled_cosine_fwd, primitives.scaled_cosine_bwd, inputs)


def _loss(name: str, rng: Any, n: int, m: int, d: int) -> Case:
    inputs = _scaled_cosine(rng, n, m, d).inputs
    if name == "sigmoid":
        inputs["b"] = np.asarray(rng.uniform(-4, 1))
    forward, backward = getattr(losses, f"{name}_loss_fwd"), getattr(losses, f"{name}_loss_bwd")
    return Case(forward, backward, inputs)


def _tiled_loss(name: str, rng: Any, n: int, m: int, d: int, tile: int) -> Case:
    loss = getattr(losses, f"tiled_{name}_loss")

    def backward(res: Any, dloss: Any) -> Any:
        return tuple(dloss * cotangent for cotangent in res)

    return Case(partial(loss, tile=tile), backward, _loss(name, rng, n, m, d).inputs)


def _ints_like(tokens: Any, like: Any) -> Any:
    """Token ids, which are no differentiable input, beside the array `like`."""
    from array_api_compat import array_namespace, device

    return array_namespace(like).asarray(tokens, device=device(like))


_HEADS = distinct("n", "m", "h", "k", most=5, k=2).filter(lambda sizes: sizes["h"] * sizes["k"] > 5)
_TOKENS = distinct("n", "m", "h", "k", "tokens", most=6)
_PAIRS = distinct("n", "m", "d", most=8, d=2)

OPERATIONS = {
    "dense": Operation(
        _dense, distinct("n", "m", "d_in", "d_out"), {"n": 2, "m": 3, "d_in": 5, "d_out": 7}
    ),
    "layer_norm": Operation(
        _layer_norm, distinct("n", "m", "d", most=9, d=3), {"n": 2, "m": 3, "d": 5}
    ),
    **{
        name: Operation(partial(_elementwise, name), distinct("n", "m"), {"n": 5, "m": 7})
        for name in ("gelu_tanh", "softplus", "log_sigmoid")
    },
    "softmax": Operation(_softmax, distinct("n", "m", "d"), {"n": 2, "m": 3, "d": 5}),
    "l2_normalize": Operation(
        _l2_normalize, distinct("n", "m", "d", d=2), {"n": 2, "m": 3, "d": 5}
    ),
    "patch_embed": Operation(
        _patch_embed,
        distinct("n", "rows", "columns", "d", "p", "leftover", most=6),
        {"n": 2, "rows": 1, "columns": 4, "d": 5, "p": 3, "leftover": 1},
    ),
    "embed": Operation(
        _embed, distinct("n", "m", "d", "v", most=9), {"n": 3, "m": 7, "d": 2, "v": 5}
    ),
    "dot_product_attention": Operation(
        _dot_product_attention, _TOKENS, {"n": 2, "h": 3, "m": 4, "k": 5, "tokens": 6}
    ),
    "multi_head_attention": Operation(
        _multi_head_attention, _TOKENS, {"n": 2, "h": 3, "m": 4, "k": 5, "tokens": 6}
    ),
    "mlp": Operation(_mlp, distinct("n", "m", "d", "f"), {"n": 2, "m": 3, "d": 5, "f": 7}),
    "block": Operation(
        lambda rng, n, m, h, k: _block(rng, n, m, h, k, f=11),
        _HEADS,
        {"n": 2, "m": 5, "h": 3, "k": 4},
    ),
    "map_head": Operation(
        lambda rng, n, m, h, k: _map_head(rng, n, m, h, k, f=11),
        _HEADS,
        {"n": 2, "m": 5, "h": 3, "k": 4},
    ),
    "encoder": Operation(
        _encoder, distinct("n", "m", "layers", most=4), {"n": 3, "m": 4, "layers": 2}
    ),
    "image": Operation(
        lambda rng, n, leftover, h, k: _image(rng, n, leftover % 4, h, k, f=11),
        distinct("n", "leftover", "h", "k", most=5, h=2, k=3),
        {"n": 2, "leftover": 3, "h": 4, "k": 5},
    ),
    "text": Operation(
        lambda rng, n, h, k: _text(rng, n, h, k, f=13),
        distinct("n", "h", "k", most=4, h=2, k=3),
        {"n": 3, "h": 2, "k": 4},
    ),
    "scaled_cosine": Operation(_scaled_cosine, _PAIRS, {"n": 5, "m": 7, "d": 3}),
    **{
        f"{name}_loss": Operation(partial(_loss, name), _PAIRS, {"n": 5, "m": 7, "d": 3})
        for name in ("sigmoid", "softmax")
    },
    **{
        f"tiled_{name}_loss": Operation(
            partial(_tiled_loss, name),
            distinct("n", "m", "d", "tile", most=8, d=2),
            {"n": 5, "m": 7, "d": 3, "tile": 4},
        )
        for name in ("sigmoid", "softmax")
    },
}
"""Every operation of the core that has a backward pass."""


class Pairing(NamedTuple):
    """Embeddings and scalars of a loss, in its argument order."""

    zimg: Any
    ztxt: Any
    t_prime: Any
    b: Any


def pairing(rng: np.random.Generator, n: int, m: int, d: int, *, b: float | None = None) -> Pairing:
    """Unit rows, a temperature between 1 and 20 and a bias between -10 and 1, or `b`."""
    return Pairing(
        unit_rows(rng, n, d),
        unit_rows(rng, m, d),
        np.asarray(rng.uniform(0, 3)),
        np.asarray(rng.uniform(-10, 1) if b is None else b),
    )


def targets(rng: np.random.Generator, n: int, m: int, kind: str) -> tuple[Any, Any]:
    """Labels and weights of every pair: hard, soft, or soft and weighted with some of them 0."""
    if kind == "hard":
        return rng.choice([-1.0, 1.0], (n, m)), None
    if kind == "soft":
        return rng.uniform(-1, 1, (n, m)), None
    return rng.uniform(-1, 1, (n, m)), rng.uniform(0, 3, (n, m)) * rng.integers(0, 2, (n, m))


TARGETS = ("hard", "soft", "weighted")
