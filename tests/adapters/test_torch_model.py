"""siglip_torch.SiglipModel: the core's towers as a module."""

import numpy as np
import pytest

import siglip_ref as sr
from backends import library
from siglip_ref.tree import flatten, tree_map, unflatten
from strategies import random_params, tower_configs

torch = library("torch")

from siglip_torch import SiglipModel, sigmoid_loss  # noqa: E402

CONFIG = tower_configs()
SCALARS = ("t_prime", "b")


def batch(config=CONFIG, n=4, dtype=torch.float64):
    """Parameters of the core, and images and tokens for the module."""
    rng = np.random.default_rng(0)
    size, length = config.image.image_size, config.text.context_length
    images = torch.tensor(rng.uniform(-1, 1, (n, size, size, 3)), dtype=dtype)
    tokens = torch.tensor(rng.integers(0, config.text.vocab_size, (n, length)))
    return random_params(config, rng), images, tokens


def loss_of(model, images, tokens):
    return sigmoid_loss(*model(images, tokens), model.t_prime, model.b)


def gradients(model):
    return dotless({name: p.grad for name, p in model.named_parameters()})


def dotless(named):
    """What is named as in a module, by the paths of the core."""
    return {name.replace(".", "/"): x for name, x in named.items()}


@pytest.mark.parametrize("remat", [False, True])
def test_loss_and_gradients_are_the_cores(remat):
    params, images, tokens = batch()
    model = SiglipModel.from_params(params, CONFIG, remat=remat)
    loss = loss_of(model, images, tokens)
    loss.backward()
    want, grads = sr.loss_and_grads(tree_map(torch.from_numpy, params), images, tokens, CONFIG)
    torch.testing.assert_close(loss, want, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradients(model), flatten(grads), rtol=1e-11, atol=1e-12)


def test_gradients_add_up_over_two_passes():
    params, images, tokens = batch()
    once, twice = (SiglipModel.from_params(params, CONFIG) for _ in range(2))
    loss_of(once, images, tokens).backward()
    for _ in range(2):
        loss_of(twice, images, tokens).backward()
    doubled = {name: 2 * grad for name, grad in gradients(once).items()}
    torch.testing.assert_close(gradients(twice), doubled, rtol=1e-13, atol=1e-15)


def test_the_gradient_of_the_images_passes_torchs_own_check():
    params, images, _ = batch(n=1)
    model = SiglipModel.from_params(params, CONFIG)
    images.requires_grad_()
    # In a random direction: there are 363 numbers in an image.
    assert torch.autograd.gradcheck(model.encode_image, (images,), fast_mode=True)


def test_parameters_have_the_names_of_the_core_and_its_initial_values():
    model = SiglipModel(CONFIG, seed=7)
    want = flatten(sr.init_params(CONFIG, np.random.default_rng(7)))
    state = model.state_dict()
    assert set(state) == {path.replace("/", ".") for path in want}
    assert all(
        np.array_equal(state[path.replace("/", ".")].numpy(), leaf) for path, leaf in want.items()
    )
    assert all(p.requires_grad for p in model.parameters())


def test_params_is_a_tree_that_the_core_takes_and_the_modules_own_memory():
    params, images, _ = batch()
    model = SiglipModel.from_params(params, CONFIG)
    tree = model.params()
    assert not any(leaf.requires_grad for leaf in flatten(tree).values())
    torch.testing.assert_close(sr.encode_image(tree, images, CONFIG), model.encode_image(images))
    tree["b"].fill_(3.0)
    assert model.b.item() == 3.0


def test_it_copies_the_parameters_that_it_is_given():
    params, *_ = batch()
    model = SiglipModel.from_params(params, CONFIG)
    with torch.no_grad():
        model.get_parameter("img.pos_embedding").zero_()
    assert np.all(params["img"]["pos_embedding"] != 0)


def test_a_state_dict_goes_from_one_to_another():
    one, other = SiglipModel(CONFIG, seed=1), SiglipModel(CONFIG, seed=2)
    other.load_state_dict(one.state_dict())
    assert all(
        torch.equal(x, y)
        for x, y in zip(
            flatten(one.params()).values(), flatten(other.params()).values(), strict=True
        )
    )


def test_an_optimizer_of_torch_lowers_the_loss():
    _, images, tokens = batch(dtype=torch.float32)
    model = SiglipModel(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = loss_of(model, images, tokens)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_it_computes_in_the_dtype_of_its_parameters_also_under_autocast(dtype):
    params, images, tokens = batch(dtype=dtype)
    found = []
    for enabled in (False, True):
        model = SiglipModel.from_params(params, CONFIG).to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            zimg, ztxt = model(images, tokens)
            (zimg.sum() + ztxt.sum()).backward()
        assert zimg.dtype == ztxt.dtype == dtype
        towers = [p for name, p in model.named_parameters() if name not in SCALARS]
        assert {p.grad.dtype for p in towers} == {dtype}
        found.append((zimg, ztxt, *(p.grad for p in towers)))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


CHANGES = {
    "to": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "to meta": lambda model: model.to("meta", torch.float16),
    "in another": lambda model: torch.nn.Sequential(model).to(torch.bfloat16)[0],
}


@pytest.mark.parametrize("how", CHANGES)
def test_t_and_b_stay_float32_whatever_the_towers_become(how):
    model = SiglipModel(CONFIG)
    for name in SCALARS:
        p = model.get_parameter(name)
        p.data.fill_(0.1 + p.item())
        p.grad = torch.full_like(p, 0.1)
    before = {name: model.get_parameter(name).clone() for name in SCALARS}
    changed = CHANGES[how](model)
    for name, p in changed.named_parameters():
        if name in SCALARS:
            assert p.dtype == p.grad.dtype == torch.float32
            assert p.device.type == "meta" or torch.equal(p, before[name])
        else:
            assert torch.finfo(p.dtype).bits == 16
    assert len({p.device for p in changed.parameters()}) == 1


def test_t_and_b_are_widened_and_come_back_with_all_others():
    model = SiglipModel(CONFIG).double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert {p.dtype for p in model.float().parameters()} == {torch.float32}


@pytest.mark.parametrize("assign", [False, True])
def test_t_and_b_of_16_bits_are_widened_when_they_are_loaded(assign):
    narrow = {name: x.bfloat16() for name, x in SiglipModel(CONFIG, seed=1).state_dict().items()}
    whole = torch.nn.ModuleDict({"model": SiglipModel(CONFIG)})
    whole.load_state_dict({f"model.{name}": x for name, x in narrow.items()}, assign=assign)
    built = SiglipModel.from_params(unflatten(dotless(narrow)), CONFIG)
    for model in (whole["model"], built):
        for name in SCALARS:
            assert model.get_parameter(name).dtype == torch.float32
            assert torch.equal(model.get_parameter(name), narrow[name].float())


def test_the_loss_of_a_model_in_bfloat16_has_the_digits_of_t_and_b():
    params, images, tokens = batch(dtype=torch.bfloat16)
    params |= {"t_prime": np.asarray(2.3), "b": np.asarray(-9.7)}
    model = SiglipModel.from_params(params, CONFIG).to(torch.bfloat16)
    loss = loss_of(model, images, tokens)
    loss.backward()
    zimg, ztxt = (z.detach().double() for z in model(images, tokens))
    want, grads = sr.losses.tiled_sigmoid_loss(zimg, ztxt, *(torch.tensor(x) for x in (2.3, -9.7)))
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    assert model.b.grad.item() == pytest.approx(grads.db.item(), rel=1e-6)


def test_without_gradients_nothing_is_recorded():
    _, images, tokens = batch(dtype=torch.float32)
    with torch.no_grad():
        zimg, ztxt = SiglipModel(CONFIG)(images, tokens)
    assert zimg.grad_fn is ztxt.grad_fn is None


def test_rematerialisation_keeps_less():
    _, images, tokens = batch(n=16, dtype=torch.float32)
    kept = []
    for remat in (False, True):
        sizes = []
        model = SiglipModel(CONFIG, remat=remat)
        parameters = {p.data_ptr() for p in model.parameters()}

        def pack(x, sizes=sizes, parameters=parameters):
            sizes.append(0 if x.data_ptr() in parameters else x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(images, tokens)
        kept.append(sum(sizes))
    assert kept[1] < 0.6 * kept[0]


def test_a_parameter_that_is_written_to_before_the_backward_pass_is_noticed():
    _, images, tokens = batch(dtype=torch.float32)
    model = SiglipModel(CONFIG)
    loss = loss_of(model, images, tokens)
    with torch.no_grad():
        model.get_parameter("txt.block.00.mlp.dense_0.kernel").mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives_are_refused_by_name():
    _, images, _ = batch(dtype=torch.float32)
    model = SiglipModel(CONFIG)
    z = model.encode_image(images).sum()
    with pytest.raises(RuntimeError, match="SiglipModel can be differentiated once"):
        torch.autograd.grad(z, list(model.get_submodule("img").parameters()), create_graph=True)


@pytest.mark.usefixtures("unchecked")
def test_inputs_and_parameters_that_do_not_fit_are_named():
    params, images, tokens = batch(dtype=torch.float32)
    model = SiglipModel(CONFIG)
    with pytest.raises(ValueError, match="images must have the shape"):
        model(images[:, :-1], tokens)
    with pytest.raises(ValueError, match="tokens must have the shape"):
        model(images, tokens[:, :-1])
    with pytest.raises(TypeError, match="tokens must be integers"):
        model(images, tokens.float())
    flat = flatten(params)
    del flat["img/pos_embedding"]
    with pytest.raises(ValueError, match="missing img/pos_embedding"):
        SiglipModel.from_params(unflatten(flat), CONFIG)
