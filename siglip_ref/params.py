"""Names, shapes and initial values of the parameters.

The tree is a nested dict; `tree.flatten` gives each array its name:

    img/patch_embed/{kernel,bias}  img/pos_embedding  img/block/NN/…  img/encoder_norm/{scale,bias}
    img/map_head/{probe, attn/…, ln/…, mlp/…}
    txt/embed/embedding  txt/pos_embedding  txt/block/NN/…  txt/encoder_norm/…
    txt/head/{kernel,bias}  t_prime  b

with block/NN = ln_0/{scale,bias}, attn/{query,key,value,out}/{kernel,bias}, ln_1/…,
mlp/{dense_0,dense_1}/{kernel,bias}.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from siglip_ref.config import ImageConfig, SiglipConfig, TextConfig
from siglip_ref.tree import flatten, unflatten
from siglip_ref.types import Tree

INITIAL_T_PRIME = math.log(10)
"""t' = log 10, so t = 10 (arXiv:2303.15343, section 3.2)."""

INITIAL_B = -10.0
"""b = -10, near the prior log-odds of a match at n = 22,027 (arXiv:2303.15343, section 3.2)."""

Sampler = Callable[[np.random.Generator, tuple[int, ...]], Any]
"""A generator and a shape to an array of initial values."""


class Leaf(NamedTuple):
    """Shape and distribution of one parameter."""

    shape: tuple[int, ...]
    sample: Sampler


def prior_bias(n: int) -> float:
    """b = -log(n - 1), the log-odds that a pair of a batch of n matches.

    The bias at which the loss starts in balance; -10 suits n = 22,027, and a smaller batch wants
    a bias nearer to 0.

    Raises ValueError if n is below 2, where there are no negatives.

    Source: arXiv:2303.15343, section 3.2 (the prior); open_clip#650 (small batches).
    """
    if n < 2:
        raise ValueError(f"n must be at least 2 pairs, got {n}")
    return -math.log(n - 1)


def init_params(
    config: SiglipConfig,
    rng: np.random.Generator,
    *,
    t_prime: float = INITIAL_T_PRIME,
    b: float = INITIAL_B,
) -> Tree:
    """Initial parameters as float32 NumPy arrays, drawn from `rng`.

    The distributions are big_vision's:

    | parameter | distribution |
    | --- | --- |
    | patch kernel, text head kernel | normal cut at ±2σ, variance 1/d_in (lecun_normal) |
    | attention and mlp kernels | uniform in ±sqrt(6 / (d_in + d_out)) (xavier_uniform) |
    | MAP probe | uniform in ±sqrt(6 / (1 + d)) |
    | position embeddings, token table | normal, variance 1/d |
    | mlp biases | normal, deviation 1e-6 |
    | other biases; norm scales | 0; 1 |

    For a batch of n pairs, `b=prior_bias(n)` starts at the prior.

    Raises TypeError if `rng` is not a `numpy.random.Generator`.

    Source: big_vision, `models/vit.py`, `models/proj/image_text/`.
    """
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
    leaves: dict[str, Leaf] = flatten(_leaves(config))
    leaves |= {"t_prime": Leaf((), _constant(t_prime)), "b": Leaf((), _constant(b))}
    return unflatten(
        {
            path: np.asarray(leaf.sample(rng, leaf.shape), dtype=np.float32)
            for path, leaf in leaves.items()
        }
    )


def param_shapes(config: SiglipConfig) -> dict[str, tuple[int, ...]]:
    """The shapes, by path, that parameters of this configuration must have."""
    return {path: leaf.shape for path, leaf in flatten(_leaves(config)).items()}


def num_params(config: SiglipConfig) -> int:
    """How many numbers the parameters of this configuration are."""
    return sum(math.prod(shape) for shape in param_shapes(config).values())


def check_params(params: Tree, config: SiglipConfig) -> None:
    """Raise ValueError unless `params` is the tree of `config`, listing all differences."""
    wanted = param_shapes(config)
    got = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
    problems = [f"missing {path}" for path in wanted.keys() - got.keys()]
    problems += [f"unknown {path}" for path in got.keys() - wanted.keys()]
    problems += [
        f"{path} has the shape {got[path]}, wanted {shape}"
        for path, shape in wanted.items()
        if path in got and got[path] != shape
    ]
    if problems:
        raise ValueError("params do not fit config: " + "; ".join(sorted(problems)))


def _leaves(config: SiglipConfig) -> Tree:
    image, text = config.image, config.text
    img = {
        "patch_embed": _dense(image.patch_size**2 * 3, image.width, _lecun_normal),
        "pos_embedding": _vectors(image.num_patches, image.width),
        **_encoder(image),
        "map_head": {
            "probe": Leaf((1, image.width), _xavier_uniform),
            "attn": _attention(image.width),
            "ln": _layer_norm(image.width),
            "mlp": _mlp(image),
        },
    }
    txt = {
        "embed": {"embedding": _vectors(text.vocab_size, text.width)},
        "pos_embedding": _vectors(text.context_length, text.width),
        **_encoder(text),
    }
    if text.out_dim is not None:
        txt["head"] = _dense(text.width, text.out_dim, _lecun_normal)
    scalar = Leaf((), _constant(0.0))
    return {"img": img, "txt": txt, "t_prime": scalar, "b": scalar}


def _encoder(config: ImageConfig | TextConfig) -> Tree:
    block = {
        "ln_0": _layer_norm(config.width),
        "attn": _attention(config.width),
        "ln_1": _layer_norm(config.width),
        "mlp": _mlp(config),
    }
    blocks = {f"{index:02d}": block for index in range(config.depth)}
    return {"block": blocks, "encoder_norm": _layer_norm(config.width)}


def _attention(width: int) -> Tree:
    names = ("query", "key", "value", "out")
    return {name: _dense(width, width, _xavier_uniform) for name in names}


def _mlp(config: ImageConfig | TextConfig) -> Tree:
    sizes = ((config.width, config.mlp_dim), (config.mlp_dim, config.width))
    return {
        f"dense_{index}": {
            "kernel": Leaf(size, _xavier_uniform),
            "bias": Leaf(size[1:], lambda rng, shape: 1e-6 * rng.standard_normal(shape)),
        }
        for index, size in enumerate(sizes)
    }


def _dense(d_in: int, d_out: int, kernel: Sampler) -> Tree:
    return {"kernel": Leaf((d_in, d_out), kernel), "bias": Leaf((d_out,), _constant(0.0))}


def _layer_norm(width: int) -> Tree:
    return {"scale": Leaf((width,), _constant(1.0)), "bias": Leaf((width,), _constant(0.0))}


def _vectors(count: int, width: int) -> Leaf:
    return Leaf((count, width), lambda rng, shape: rng.standard_normal(shape) / math.sqrt(width))


def _constant(value: float) -> Sampler:
    return lambda _, shape: np.full(shape, value)


def _xavier_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    limit = math.sqrt(6 / sum(shape))
    return rng.uniform(-limit, limit, shape)


def _lecun_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    # Cut at ±2σ, a normal has the standard deviation 0.8796 σ: divided out.
    sigma = math.sqrt(1 / shape[0]) / 0.87962566103423978
    draws = rng.standard_normal(shape)
    while np.any(outside := np.abs(draws) > 2):
        draws = np.where(outside, rng.standard_normal(shape), draws)
    return sigma * draws
