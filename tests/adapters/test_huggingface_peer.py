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
            image_size=12, patch_size=4, width=20, depth=2, mlp_dim=28, num_heads=2
        ),
        text=sr.TextConfig(
            vocab_size=31, context_length=7, width=24, depth=3, mlp_dim=36, num_heads=4, out_dim=20
        ),
        l2_norm_eps=0.0,
    ),
    "leftover pixels, as 384/14": sr.SiglipConfig(
        image=sr.ImageConfig(
            image_size=19, patch_size=4, width=30, depth=1, mlp_dim=22, num_heads=3
        ),
        text=sr.TextConfig(
            vocab_size=17, context_length=5, width=16, depth=2, mlp_dim=26, num_heads=2, out_dim=30
        ),
        l2_norm_eps=0.0,
    ),
    "wider": sr.SiglipConfig(
        image=sr.ImageConfig(
            image_size=32, patch_size=8, width=96, depth=4, mlp_dim=200, num_heads=6
        ),
        text=sr.TextConfig(
            vocab_size=101,
            context_length=16,
            width=64,
            depth=3,
            mlp_dim=144,
            num_heads=4,
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
        model.logit_bias.fill_(-1.7)
    return model


def batch(config: sr.SiglipConfig, dtype: str, n: int = 6):
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


def worst(got: np.ndarray, want: np.ndarray, scale: float | None = None) -> float:
    return float(np.max(np.abs(got - want)) / (scale or np.max(np.abs(want))))


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
    largest = max(float(np.max(np.abs(leaf))) for leaf in want.values())
    assert got.keys() == want.keys()
    for path, leaf in want.items():
        # The gradient of a key's bias is 0 but for rounding, since softmax does not see it.
        scale = largest if path.endswith("key/bias") else None
        assert worst(got[path], leaf, scale) <= TOLERANCE[dtype], path


def test_another_gelu_would_be_noticed():
    config = CONFIGS["small"]
    model = peer(config, "float64", activation="gelu")
    params = params_from_huggingface(model.state_dict(), config)
    images, tokens = batch(config, "float64")
    with torch.no_grad():
        want = peer_forward(model, images, tokens).image_embeds.numpy()
    assert worst(sr.encode_image(params, images, config), want) > 1e4 * TOLERANCE["float64"]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_go_there_and_back_without_a_changed_bit(config):
    state = {name: tensor.numpy() for name, tensor in peer(config, "float32").state_dict().items()}
    back = params_to_huggingface(params_from_huggingface(state, config), config)
    wanted = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    assert back.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name, strict=True)


def test_a_state_dict_that_does_not_fit_is_refused_by_name():
    config = CONFIGS["small"]
    state = dict(peer(config, "float32").state_dict())
    state["text_model.extra"] = state.pop("logit_bias")
    with pytest.raises(ValueError, match=r"missing logit_bias; unknown text_model\.extra"):
        params_from_huggingface(state, config)
    state = dict(peer(config, "float32").state_dict())
    state["vision_model.post_layernorm.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"img/encoder_norm/bias has the shape \(3,\), wanted"):
        params_from_huggingface(state, config)


def test_a_model_without_a_text_head_must_have_the_identity_there():
    text = {"vocab_size": 31, "context_length": 7, "width": 20, "depth": 1, "mlp_dim": 8}
    headless = sr.SiglipConfig(
        image=CONFIGS["small"].image,
        text=sr.TextConfig(**text, num_heads=2, out_dim=None),
    )
    params = sr.init_params(headless, np.random.default_rng(0))
    state = params_to_huggingface(params, headless)
    back = sr.tree.flatten(params_from_huggingface(state, headless))
    for path, leaf in sr.tree.flatten(params).items():
        np.testing.assert_array_equal(back[path], leaf, err_msg=path)
    state["text_model.head.weight"] = 2 * state["text_model.head.weight"]
    with pytest.raises(ValueError, match="must be the identity"):
        params_from_huggingface(state, headless)
