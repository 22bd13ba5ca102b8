"""Hugging Face's `SiglipModel` and `Siglip2Model` as subjects, differentiated by autograd.

Every case becomes a whole model with our parameters in it. What the case does not give (the other
tower, all that is around a block) is filled with initial values and left out of the answer. The
parameters go there, and the gradients back, through the tables of `siglip_train.checkpoints`,
which rename, transpose and stack.
"""

import math
import os
from functools import partial

import numpy as np

import siglip_ref as sr
from backends import library
from siglip_ref.tree import flatten, unflatten
from siglip_spec import Subject
from siglip_spec.operations.encoders import image_config, text_config
from siglip_train.checkpoints import params_from_huggingface, params_to_huggingface

SOURCE = "https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models"
NO_EPS = (
    "transformers divides an embedding by its norm with no eps, which is 1e-8 of it away from "
    f"ENC-12 and shows in float64 only: {SOURCE}/siglip/modeling_siglip.py, SiglipModel.forward"
)
NOT_LOG_10 = (
    "transformers starts from scratch with t' = 0 and b = 0: "
    f"{SOURCE}/siglip/modeling_siglip.py, _init_weights"
)
SHORT_TEXTS = (
    "transformers takes texts that are not padded to the context length, and pools the last word "
    f"of them: {SOURCE}/siglip/modeling_siglip.py, SiglipTextEmbeddings.forward"
)
ANY_GRID = (
    "Siglip2Model resizes its positions to any grid of patches, as NaFlex is meant to: "
    f"{SOURCE}/siglip2/modeling_siglip2.py, resize_positional_embeddings"
)
EMBEDDINGS = (
    "image.tower/n3-s12-p5-d14/leftover",
    "image.tower/n3-s10-p5-d14/whole",
    "text.tower/n4-l5-v13-d12/head",
    "text.tower/n4-l5-v13-d12/no-head",
    "model.siglip/n5/init-bias",
    "model.siglip/n5/mild",
)


def siglip_model(dtype: str) -> Subject:
    """`SiglipModel`: its layers, its towers, its loss, and its initial t' and b."""
    subject = _subject("siglip", "transformers SiglipModel", dtype, {})
    _provide(subject, "block", _block)
    _provide(subject, "map_head", _map_head)
    return subject


def siglip2_model(dtype: str) -> Subject:
    """`Siglip2Model` (NaFlex), on square images that are cut into patches for it."""
    expected = {"image.tower/n3-s17-p5-d14/other-size": ANY_GRID}
    return _subject("siglip2", "transformers Siglip2Model", dtype, expected)


def _subject(kind: str, name: str, dtype: str, expected: dict[str, str]) -> Subject:
    expected |= {
        "loss.initial/scalars": NOT_LOG_10,
        "text.tower/n4-l4-v13-d12/unpadded": SHORT_TEXTS,
    }
    if dtype == "float64":
        expected |= dict.fromkeys(EMBEDDINGS, NO_EPS)
    subject = Subject(name, dtype=dtype, expected_failures=expected)
    _provide(subject, "encode_image", partial(_encode_image, kind))
    _provide(subject, "encode_text", partial(_encode_text, kind))
    _provide(subject, "siglip", partial(_siglip, kind))
    subject.provides("initial_scalars")(partial(_initial_scalars, kind))
    return subject


def _provide(subject: Subject, operation: str, function) -> None:
    """`function` is the operation, and its gradient when it is given a cotangent."""
    subject.provides(operation)(function)
    subject.provides(f"{operation}_bwd")(function)


def _block(x, params, num_heads, eps, dout=None):
    peer = Peer("siglip", {"img": {"block": {"00": params}}}, _image_of(params, num_heads, eps))
    layer = peer.model.vision_model.encoder.layers[0]
    return peer.layer(partial(layer, attention_mask=None), "img/block/00", x, dout)


def _map_head(tokens, params, num_heads, eps, dout=None):
    peer = Peer("siglip", {"img": {"map_head": params}}, _image_of(params, num_heads, eps))
    return peer.layer(peer.model.vision_model.head, "img/map_head", tokens, dout)


def _encode_image(kind, images, params, num_heads, eps, dzimg=None):
    peer = Peer(kind, {"img": params}, _image_tower(params, num_heads, eps))
    zimg = peer(images=images).image_embeds
    return zimg.detach() if dzimg is None else peer.gradients(zimg, dzimg)["img"]


def _encode_text(kind, tokens, params, num_heads, eps, dztxt=None):
    text = _text_tower(params, num_heads, eps)
    peer = Peer(kind, {"txt": params}, _any_image(text.out_dim or text.width), text)
    ztxt = peer(tokens=tokens).text_embeds
    return ztxt.detach() if dztxt is None else peer.gradients(ztxt, dztxt)["txt"]


def _siglip(kind, images, tokens, params, image_heads, text_heads, eps, dloss=None):
    image = _image_tower(params["img"], image_heads, eps)
    peer = Peer(kind, params, image, _text_tower(params["txt"], text_heads, eps))
    found = peer(images, tokens)
    if dloss is None:
        return tuple(x.detach() for x in (found.loss, found.image_embeds, found.text_embeds))
    return {"dparams": peer.gradients(found.loss, dloss)}


def _initial_scalars(kind):
    model = Peer(kind, {}, _any_image(4)).fresh()
    return model.logit_scale.detach()[0], model.logit_bias.detach()[0]


class Peer:
    """A model of theirs with our parameters in it."""

    def __init__(self, kind, part, image, text=None):
        self._torch = library("torch")
        self._kind = kind
        text = text or sr.TextConfig(
            vocab_size=3,
            context_length=2,
            width=image.width,
            depth=1,
            mlp_dim=5,
            num_heads=1,
            out_dim=None,
            layer_norm_eps=image.layer_norm_eps,
        )
        self.config = sr.SiglipConfig(image=image, text=text)
        leaves = flatten(sr.init_params(self.config, np.random.default_rng(0))) | flatten(part)
        dtype = next(iter(flatten(part).values()), np.zeros(())).dtype
        state = params_to_huggingface(
            unflatten({path: leaf.astype(dtype) for path, leaf in leaves.items()}), self.config
        )
        if kind == "siglip2":
            name = "vision_model.embeddings.patch_embedding.weight"
            state[name] = state[name].transpose(0, 2, 3, 1).reshape(image.width, -1)
        self.model = self.fresh().to(getattr(self._torch, str(dtype)))
        self.model.load_state_dict({name: self._tensor(x) for name, x in state.items()})

    def fresh(self):
        """The model as it starts from scratch."""
        os.environ["HF_HUB_OFFLINE"] = "1"
        transformers = library("transformers")
        name = {"siglip": "Siglip", "siglip2": "Siglip2"}[self._kind]
        image, text = self.config.image, self.config.text
        size = {"image_size": image.image_size}
        if self._kind == "siglip2":
            size = {"num_patches": image.num_patches}
        vision = getattr(transformers, f"{name}VisionConfig")(
            patch_size=image.patch_size, **size, **_sizes(image)
        )
        words = getattr(transformers, f"{name}TextConfig")(
            vocab_size=text.vocab_size,
            max_position_embeddings=text.context_length,
            projection_size=text.out_dim or text.width,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            **_sizes(text),
        )
        both = getattr(transformers, f"{name}Config")(
            vision_config=vision.to_dict(), text_config=words.to_dict()
        )
        model = getattr(transformers, f"{name}Model")
        return model._from_config(both, attn_implementation="sdpa").eval()

    def __call__(self, images=None, tokens=None):
        """Their answer; a tower that the case is not about gets anything that fits."""
        image, text = self.config.image, self.config.text
        both = images is not None and tokens is not None
        if images is None:
            images = np.zeros((1, image.image_size, image.image_size, 3))
        if tokens is None:
            tokens = np.zeros((1, text.context_length), dtype=np.int64)
        return self.model(input_ids=self._tensor(tokens), **self._pixels(images), return_loss=both)

    def layer(self, function, path, x, dout):
        """A layer of the model, or with `dout` the gradients of its input and parameters."""
        x = self._tensor(x).requires_grad_()
        out = function(x)
        if dout is None:
            return out.detach()
        (dx,) = self._torch.autograd.grad(out, x, self._tensor(dout), retain_graph=True)
        dparams = flatten(self.gradients(out, dout))
        own = {k.removeprefix(f"{path}/"): v for k, v in dparams.items() if k.startswith(path)}
        return dx, unflatten(own)

    def gradients(self, out, dout):
        """Of all parameters, in our tree."""
        named = dict(self.model.named_parameters())
        if self.config.text.out_dim is None:
            named = {k: v for k, v in named.items() if not k.startswith("text_model.head.")}
        found = self._torch.autograd.grad(
            out, list(named.values()), self._tensor(dout), materialize_grads=True
        )
        return params_from_huggingface(dict(zip(named, found, strict=True)), self.config)

    def _pixels(self, images):
        images = images.astype(str(self.model.dtype).removeprefix("torch."))
        if self._kind == "siglip":
            return {"pixel_values": self._tensor(images).permute(0, 3, 1, 2)}
        n, p = len(images), self.config.image.patch_size
        grid = images.shape[1] // p
        corner = images[:, : grid * p, : grid * p].reshape(n, grid, p, grid, p, 3)
        patches = corner.transpose(0, 1, 3, 2, 4, 5).reshape(n, grid**2, -1)
        return {
            "pixel_values": self._tensor(patches),
            "pixel_attention_mask": self._torch.ones(n, grid**2, dtype=self._torch.int64),
            "spatial_shapes": self._torch.full((n, 2), grid),
        }

    def _tensor(self, array):
        return self._torch.from_numpy(np.array(array))


def _sizes(tower):
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_dim,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.num_heads,
        "layer_norm_eps": tower.layer_norm_eps,
    }


def _image_tower(params, num_heads, eps):
    """The tower of these parameters, for images of whole patches."""
    patches, patch = len(params["pos_embedding"]), params["patch_embed"]["kernel"].shape[0] // 3
    side = math.isqrt(patches) * math.isqrt(patch)
    return image_config(params, np.zeros((1, side, side, 3)), num_heads, eps)


def _text_tower(params, num_heads, eps):
    tokens = np.zeros((1, len(params["pos_embedding"])), dtype=np.int64)
    return text_config(params, tokens, num_heads, eps)


def _image_of(params, num_heads, eps):
    """A tower with layers of the sizes of this one."""
    d, mlp_dim = params["mlp"]["dense_0"]["kernel"].shape
    return _any_image(d, mlp_dim, num_heads, eps)


def _any_image(d, mlp_dim=5, num_heads=1, eps=1e-6):
    return sr.ImageConfig(
        image_size=2,
        patch_size=2,
        width=d,
        depth=1,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        layer_norm_eps=eps,
    )
