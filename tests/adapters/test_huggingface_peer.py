"""Hugging Face's `SiglipModel`, with its own random weights copied over, is the same function.

Its attention is `sdpa`: the eager path rounds the softmax to float32. It divides an embedding by
its norm with no eps, which is `l2_norm_eps=0` here.
"""

import os

import numpy as np
import pytest

import siglip_ref as sr
from siglip_train.checkpoints import params_from_huggingface, params_to_huggingface

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
CONFIGS = {
    "small": sr.SiglipConfig(
        image=sr.ImageConfig(
            image_size=20, patch_size=5, width=22, depth=2, mlp_dim=28, num_heads=2
        ),
        text=sr.TextConfig(
            vocab_size=31, context_length=7, width=24, depth=3, mlp_dim=36, num_heads=3, out_dim=22
        ),
        l2_norm_eps=0.0,
    ),
    "leftover pixels, as 384/14": sr.SiglipConfig(
        image=sr.ImageConfig(
            image_size=23, patch_size=4, width=30, depth=1, mlp_dim=27, num_heads=3
        ),
        text=sr.TextConfig(
            vocab_size=17, context_length=8, width=14, depth=2, mlp_dim=26, num_heads=2, out_dim=30
        ),
        l2_norm_eps=0.0,
    ),
    "wider": sr.SiglipConfig(
        image=sr.ImageConfig(
            image_size=48, patch_size=8, width=96, depth=4, mlp_dim=200, num_heads=4
        ),
        text=sr.TextConfig(
            vocab_size=101,
            context_length=16,
            width=60,
            depth=3,
            mlp_dim=144,
            num_heads=5,
            out_dim=96,
        ),
        l2_norm_eps=0.0,
    ),
}


def peer(config: sr.SiglipConfig, dtype: str, activation: str = "gelu_pytorch_tanh"):
    image, text = config.image, config.text
    vision = transformers.SiglipVisionConfig(
        hidden_size=image.width,
        intermediate_size=image.mlp_dim,
        num_hidden_layers=image.depth,
        num_attention_heads=image.num_heads,
        image_size=image.image_size,
        patch_size=image.patch_size,
        hidden_act=activation,
    )
    words = transformers.SiglipTextConfig(
        vocab_size=text.vocab_size,
        max_position_embeddings=text.context_length,
        hidden_size=text.width,
        intermediate_size=text.mlp_dim,
        num_hidden_layers=text.depth,
        num_attention_heads=text.num_heads,
        projection_size=text.out_dim,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    both = transformers.SiglipConfig(text_config=words.to_dict(), vision_config=vision.to_dict())
    torch.manual_seed(0)
    model = transformers.SiglipModel._from_config(both, attn_implementation="sdpa")
    model = model.to(getattr(torch, dtype)).eval()
    assert model.config.vision_config._attn_implementation == "sdpa"
    # No parameter may stay at a value that hides a mistake, such as a bias of 0 or a scale of 1.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(1.3)
        # Far from the prior, where the gradients of t' and b would cancel to rounding.
        model.logit_bias.fill_(0.7)
    return model


def batch(config: sr.SiglipConfig, dtype: str, n: int = 9):
    rng = np.random.default_rng(1)
    size = config.image.image_size
    images = rng.uniform(-1, 1, (n, size, size, 3)).astype(dtype)
    return images, rng.integers(0, config.text.vocab_size, (n, config.text.context_length))


def peer_forward(model, images, tokens):
    return model(
        input_ids=torch.from_numpy(tokens),
        pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2),
        return_loss=True,
    )


def worst(got: np.ndarray, want: np.ndarray, magnitude: np.ndarray | None = None) -> float:
    largest = np.max(np.abs(want if magnitude is None else magnitude))
    return float(np.max(np.abs(got - want)) / largest)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_embeddings_and_loss_are_the_peers(config, dtype):
    model = peer(config, dtype)
    params = params_from_huggingface(model.state_dict(), config)
    images, tokens = batch(config, dtype)
    with torch.no_grad():
        want = peer_forward(model, images, tokens)
    zimg = sr.encode_image(params, images, config)
    ztxt = sr.encode_text(params, tokens, config)
    loss, _ = sr.loss_and_grads(params, images, tokens, config)
    logits = np.exp(params["t_prime"]) * zimg @ ztxt.T + params["b"]
    assert zimg.dtype == ztxt.dtype == loss.dtype == dtype
    for got, wanted in (
        (zimg, want.image_embeds),
        (ztxt, want.text_embeds),
        (logits, want.logits_per_image),
        (loss, want.loss),
    ):
        assert worst(got, wanted.numpy()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_gradient_is_what_autograd_finds_in_the_peer(config, dtype):
    model = peer(config, dtype)
    params = params_from_huggingface(model.state_dict(), config)
    images, tokens = batch(config, dtype)
    peer_forward(model, images, tokens).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    want = sr.tree.flatten(params_from_huggingface(gradients, config))
    got = sr.tree.flatten(sr.loss_and_grads(params, images, tokens, config)[1])
    assert got.keys() == want.keys()
    for path, leaf in want.items():
        # The gradient of a key's bias is 0 but for rounding, since softmax does not see it:
        # the query's stands for the magnitude of what cancels.
        magnitude = want[path.replace("key/bias", "query/bias")]
        assert worst(got[path], leaf, magnitude) <= TOLERANCE[dtype], path


def test_another_gelu_would_be_noticed():
    config = CONFIGS["small"]
    model = peer(config, "float64", activation="gelu")
    params = params_from_huggingface(model.state_dict(), config)
    images, tokens = batch(config, "float64")
    with torch.no_grad():
        want = peer_forward(model, images, tokens).image_embeds.numpy()
    assert worst(sr.encode_image(params, images, config), want) > 1e4 * TOLERANCE["float64"]


def naflex_peer(config: sr.SiglipConfig, dtype: str):
    """A `Siglip2Model` for images that fill its grid."""
    small = peer(config, dtype)
    both = small.config.to_dict()
    both["vision_config"] |= {"model_type": "siglip2_vision_model"}
    both["vision_config"] |= {"num_patches": config.image.num_patches}
    both["text_config"] |= {"model_type": "siglip2_text_model"}
    model = transformers.Siglip2Model._from_config(
        transformers.Siglip2Config(
            vision_config=both["vision_config"], text_config=both["text_config"]
        ),
        attn_implementation="sdpa",
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    # From float32 numbers, since it rounds its position embedding to float32.
    return model.to(getattr(torch, dtype)).eval()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_on_images_that_fill_the_grid_the_towers_of_naflex_are_the_same(config, dtype):
    model = naflex_peer(config, dtype)
    params = params_from_huggingface(model.state_dict(), config)
    images, tokens = batch(config, dtype)
    n, p, grid = len(images), config.image.patch_size, config.image.grid
    patches = np.stack(
        [
            images[:, row * p : (row + 1) * p, column * p : (column + 1) * p].reshape(n, -1)
            for row in range(grid)
            for column in range(grid)
        ],
        axis=1,
    )
    with torch.no_grad():
        want = model(
            input_ids=torch.from_numpy(tokens),
            pixel_values=torch.from_numpy(patches),
            pixel_attention_mask=torch.ones(n, grid**2, dtype=torch.int64),
            spatial_shapes=torch.full((n, 2), grid),
        )
    zimg = sr.encode_image(params, images, config)
    ztxt = sr.encode_text(params, tokens, config)
    assert worst(zimg, want.image_embeds.numpy()) <= TOLERANCE[dtype]
    assert worst(ztxt, want.text_embeds.numpy()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_go_there_and_back_without_a_changed_bit(config):
    model = peer(config, "float32")
    back = params_to_huggingface(params_from_huggingface(model.state_dict(), config), config)
    wanted = dict(model.named_parameters())
    assert back.keys() == wanted.keys()
    for name, parameter in wanted.items():
        np.testing.assert_array_equal(back[name], parameter.detach(), err_msg=name, strict=True)


def test_a_peer_with_our_weights_in_it_computes_what_we_do():
    config = CONFIGS["small"]
    params = params_from_huggingface(peer(config, "float64").state_dict(), config)
    torch.manual_seed(5)
    fresh = transformers.SiglipModel(peer(config, "float64").config).to(torch.float64).eval()
    fresh.load_state_dict(
        {name: torch.from_numpy(x) for name, x in params_to_huggingface(params, config).items()}
    )
    images, tokens = batch(config, "float64")
    with torch.no_grad():
        want = peer_forward(fresh, images, tokens).loss.numpy()
    loss, _ = sr.loss_and_grads(params, images, tokens, config)
    assert worst(loss, want) <= TOLERANCE["float64"]


def test_our_parameters_do_not_change_when_the_peer_is_trained_on():
    config = CONFIGS["small"]
    model = peer(config, "float32")
    params = params_from_huggingface(model.state_dict(), config)
    before = {path: leaf.copy() for path, leaf in sr.tree.flatten(params).items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    for path, leaf in sr.tree.flatten(params).items():
        np.testing.assert_array_equal(leaf, before[path], err_msg=path)


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_half_precision_is_widened_exactly(half):
    config = CONFIGS["small"]
    model = peer(config, half)
    found = params_to_huggingface(params_from_huggingface(model.state_dict(), config), config)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(
            found[name], parameter.detach().float(), err_msg=name, strict=True
        )


def test_tensors_that_are_no_floats_are_refused_by_name():
    config = CONFIGS["small"]
    state = dict(peer(config, "float32").state_dict())
    state["vision_model.head.probe"] = state["vision_model.head.probe"].to(torch.int8)
    with pytest.raises(TypeError, match=r"vision_model\.head\.probe must be .* got int8"):
        params_from_huggingface(state, config)


def test_a_state_dict_that_does_not_fit_is_refused_by_name():
    config = CONFIGS["small"]
    state = dict(peer(config, "float32").state_dict())
    state["text_model.extra"] = state.pop("logit_bias")
    with pytest.raises(ValueError, match=r"missing logit_bias; unknown text_model\.extra"):
        params_from_huggingface(state, config)
    state["logit_bias"] = state.pop("text_model.extra")
    for name, path in (
        ("vision_model.post_layernorm.bias", "img/encoder_norm/bias"),
        ("vision_model.head.attention.in_proj_bias", "img/map_head/attn/key/bias"),
        ("logit_scale", "t_prime"),
    ):
        wrong = {**state, name: torch.zeros(5)}
        with pytest.raises(ValueError, match=rf"{path} has the shape \(\d,\), wanted"):
            params_from_huggingface(wrong, config)


def test_a_model_without_a_text_head_must_have_the_identity_there():
    text = {"vocab_size": 31, "context_length": 7, "width": 22, "depth": 1, "mlp_dim": 8}
    headless = sr.SiglipConfig(
        image=CONFIGS["small"].image,
        text=sr.TextConfig(**text, num_heads=2, out_dim=None),
    )
    params = sr.init_params(headless, np.random.default_rng(0))
    state = params_to_huggingface(params, headless)
    back = sr.tree.flatten(params_from_huggingface(state, headless))
    for path, leaf in sr.tree.flatten(params).items():
        np.testing.assert_array_equal(back[path], leaf, err_msg=path)
    for name, wanted in (("weight", "the identity"), ("bias", "zero")):
        wrong = {**state, f"text_model.head.{name}": 2 + state[f"text_model.head.{name}"]}
        with pytest.raises(ValueError, match=rf"text_model\.head\.{name} must be {wanted}"):
            params_from_huggingface(wrong, headless)
