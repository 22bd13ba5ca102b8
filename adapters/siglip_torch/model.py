"""The two towers as a module: the core's forward and backward passes under Torch's autograd."""

from collections.abc import Callable
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

import siglip_ref as sr
from siglip_ref.encoders.execution import Execution
from siglip_ref.model import (
    check_images,
    check_tokens,
    encode_image_bwd,
    encode_image_fwd,
    encode_text_bwd,
    encode_text_fwd,
)
from siglip_ref.precision import at_least_float32
from siglip_ref.types import Float, Int, Tree
from siglip_torch.backend import from_numpy
from siglip_torch.forms import register_forms

_SCALARS = ("t_prime", "b")


class SiglipModel(nn.Module):
    """Images and tokens to their unit-norm embeddings, with parameters named by the core's paths.

        model = SiglipModel(sr.variants["B/16-224"])
        zimg, ztxt = model(images, tokens)
        loss = sigmoid_loss(zimg, ztxt, model.t_prime, model.b)

    `img/block/00/ln_0/scale` is `img.block.00.ln_0.scale` in `state_dict`. It computes in the dtype
    of its towers' parameters, in which images must come: autocast is without effect. t' and b are
    never narrower than float32: `half()` and `to(torch.bfloat16)` change the towers alone, and
    16-bit values of the two are widened when they are loaded. First derivatives only.

    remat
        Keep of each block its input alone, and run it forward again in the backward pass.
    """

    t_prime: nn.Parameter
    b: nn.Parameter

    def __init__(self, config: sr.SiglipConfig, seed: int = 0, *, remat: bool = False) -> None:
        super().__init__()
        register_forms()
        self.config = config
        self.remat = remat
        _register(self, sr.init_params(config, np.random.default_rng(seed)))

    @classmethod
    def from_params(cls, params: Tree, config: sr.SiglipConfig, *, remat: bool = False) -> Self:
        """The model with a copy of these parameters, NumPy arrays or tensors.

        Raises ValueError if they do not fit `config`.
        """
        sr.check_params(params, config)
        params = params | {name: at_least_float32(params[name]) for name in _SCALARS}
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        register_forms()
        model.config = config
        model.remat = remat
        _register(model, params)
        return model

    def params(self) -> Tree:
        """The parameters as the core's tree: detached, in the memory of the module's own."""
        return sr.tree.unflatten(
            {name.replace(".", "/"): leaf.detach() for name, leaf in self.named_parameters()}
        )

    def encode_image(self, images: Float[Tensor, "n height width c"]) -> Float[Tensor, "n d"]:
        """Unit-norm embeddings of images with pixels in [-1, 1].

        Raises ValueError if they do not fit the configuration.
        """
        check_images(images, self.config)
        return self._encode("img", images, encode_image_fwd, encode_image_bwd)

    def encode_text(self, tokens: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        """Unit-norm embeddings of texts, tokenised and padded to the context length.

        Raises ValueError if they do not fit the configuration, TypeError if they are not integers.
        """
        check_tokens(tokens, self.config)

        def backward(*args: Any) -> tuple[None, Tree]:
            return None, encode_text_bwd(*args)

        return self._encode("txt", tokens, encode_text_fwd, backward)

    def forward(
        self, images: Float[Tensor, "n height width c"], tokens: Int[Tensor, "m l"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
        """(zimg, ztxt)."""
        return self.encode_image(images), self.encode_text(tokens)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `half`, `cuda` and their like do to all tensors of the module."""
        scalars = [self.get_parameter(name) for name in _SCALARS]
        kept = [x for p in scalars for x in (p, p.grad)]

        def wide(x: Tensor) -> Tensor:
            found = fn(x)
            if all(x is not y for y in kept) or found.dtype in (torch.float32, torch.float64):
                return found
            return x.to(found.device, torch.promote_types(x.dtype, torch.float32))

        for child in self.children() if recurse else ():
            cast(Any, child)._apply(fn)
        applied: Self = cast(Any, super())._apply(wide, recurse=False)
        return applied

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in _SCALARS:
            if prefix + name in state_dict:
                state_dict[prefix + name] = at_least_float32(state_dict[prefix + name])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _encode(
        self, tower: str, inputs: Tensor, forward: Callable[..., Any], backward: Callable[..., Any]
    ) -> Tensor:
        leaves = dict(self.get_submodule(tower).named_parameters(prefix=tower))
        paths = [name.replace(".", "/") for name in leaves]

        def run(images: Tensor, *params: Tensor) -> tuple[Tensor, Any]:
            tree = sr.tree.unflatten(dict(zip(paths, params, strict=True)))
            z, res = forward(tree, images, self.config, Execution(remat=self.remat))
            return z, res

        def run_back(res: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
            dinputs, dparams = backward(res, dz, self.config)
            flat = sr.tree.flatten({tower: dparams})
            return dinputs, *(flat[path] for path in paths)

        z: Tensor = _Tower.apply(run, run_back, inputs, *leaves.values())  # type: ignore[no-untyped-call]
        return z


class _Tower(torch.autograd.Function):
    """A forward pass that returns residuals, and the backward pass that takes them."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[..., tuple[Tensor, Any]],
        run_back: Callable[..., tuple[Tensor | None, ...]],
        *inputs: Tensor,
    ) -> Tensor:
        with torch.autocast(inputs[0].device.type, enabled=False):
            z, res = run(*inputs)
        # Saved as Torch wants it, so that it notices who writes to a parameter in between.
        tensors: list[Tensor] = []
        ctx.residuals = _separated(res, tensors)
        ctx.save_for_backward(*tensors)
        ctx.run_back = run_back
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "SiglipModel can be differentiated once, got create_graph=True, "
                "which asks for a derivative of its gradients"
            )
        with torch.autocast(dz.device.type, enabled=False):
            res = _rejoined(ctx.residuals, ctx.saved_tensors)
            return (None, None, *ctx.run_back(res, dz))


def _separated(tree: Any, tensors: list[Tensor]) -> Any:
    """A tree with numbers for its tensors, which are appended to `tensors`."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return _Place(len(tensors) - 1)
    return _with_children(tree, lambda child: _separated(child, tensors))


def _rejoined(tree: Any, tensors: tuple[Tensor, ...]) -> Any:
    """The tree with its tensors."""
    if isinstance(tree, _Place):
        return tensors[tree]
    return _with_children(tree, lambda child: _rejoined(child, tensors))


class _Place(int):
    """The number of a tensor."""


def _with_children(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {name: change(child) for name, child in tree.items()}
    if isinstance(tree, tuple | list):
        children = [change(child) for child in tree]
        return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)
    return tree


def _register(module: nn.Module, tree: Tree) -> None:
    """Make the leaves parameters, in modules as deep as the tree."""
    for name, child in tree.items():
        if isinstance(child, dict):
            module.add_module(name, nn.Module())
            _register(module.get_submodule(name), child)
        else:
            tensor = child if isinstance(child, Tensor) else from_numpy(child)
            module.register_parameter(name, nn.Parameter(tensor.detach().clone()))
