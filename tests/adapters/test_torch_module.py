"""siglip_torch.SigLipLoss in the place of open_clip's."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import library
from strategies import seeds, unit_rows
from subjects.data_parallel import pairs, towers
from subjects.gloo import Ranks
from subjects.open_clip import losses

torch = library("torch")

from siglip_torch import SigLipLoss  # noqa: E402

EXCHANGES = ("bidir", "shift", "reduce", "gather")


def features(seed=0, n=6, d=5, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    return [torch.tensor(unit_rows(rng, n, d), dtype=dtype).requires_grad_() for _ in range(2)]


def scalars(scale=4.5):
    return [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (scale, -2.0)]


@given(seeds, st.integers(1, 9), st.sampled_from([4.5, 120.0, 0.0, -4.5]), st.booleans())
def test_it_gives_open_clips_loss_and_gradients(seed, n, scale, biased):
    found = []
    for module in (SigLipLoss(), losses().SigLipLoss()):
        zimg, ztxt, t, b = *features(seed, n), *scalars(scale)
        value = module(zimg, ztxt, t, b if biased else None)
        value.backward()
        found.append((value.detach(), zimg.grad, ztxt.grad, t.grad, b.grad if biased else t.grad))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)


def test_it_takes_open_clips_arguments_in_their_order():
    for method in ("__init__", "forward"):
        ours, theirs = (
            list(inspect.signature(getattr(module, method)).parameters)
            for module in (SigLipLoss, losses().SigLipLoss)
        )
        assert ours[: len(theirs)] == theirs
    settings = (True, 0, 1, "gather")
    for module in (SigLipLoss(*settings), losses().SigLipLoss(*settings)):
        found = module.cache_labels, module.rank, module.world_size, module.dist_impl
        assert found == settings


def test_a_dict_comes_out_if_asked_for():
    arguments = (*features(), *scalars())
    found = SigLipLoss()(*arguments, output_dict=True)
    assert list(found) == list(losses().SigLipLoss()(*arguments, output_dict=True))
    assert torch.equal(found["contrastive_loss"], SigLipLoss()(*arguments))


def test_a_scale_and_a_bias_with_an_axis_of_1_get_gradients_of_their_shape():
    t, b = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (4.5, -2.0))
    loss = SigLipLoss()(*features(), t, b)
    loss.backward()
    assert loss.shape == ()
    assert t.grad.shape == b.grad.shape == (1,)
    assert torch.equal(loss, SigLipLoss()(*features(), *scalars()))


def test_a_number_serves_as_scale():
    assert torch.equal(SigLipLoss()(*features(), 4.5, -2.0), SigLipLoss()(*features(), *scalars()))


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_the_size_of_a_tile_changes_nothing_but_rounding(chunk_size):
    arguments = (*features(), *scalars())
    found = SigLipLoss(chunk_size=chunk_size)(*arguments), SigLipLoss()(*arguments)
    torch.testing.assert_close(*found, rtol=1e-14, atol=0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles_into_one_graph():
    torch._dynamo.reset()
    arguments = (*features(), *scalars())
    module = SigLipLoss()
    got = torch.compile(module, fullgraph=True, backend="aot_eager")(*arguments)
    want = module(*arguments)
    gradients = (torch.autograd.grad(x, arguments) for x in (got, want))
    assert got.item() == want.item()
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


def test_an_exchange_that_open_clip_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"dist_impl must be one of bidir, .*, got 'rign'"):
        SigLipLoss(dist_impl="rign")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit_scale": torch.ones(2)}, r"logit_scale must be one number, got the shape \(2,\)"),
        ({"logit_bias": torch.ones(3)}, r"logit_bias must be one number, got the shape \(3,\)"),
        ({"text_features": torch.ones(4, 5)}, "got 6 images and 4 texts"),
        ({"image_features": torch.ones(6)}, "zimg must be a matrix"),
    ],
)
def test_bad_arguments_are_named(change, message):
    zimg, ztxt = features(dtype=torch.float32)
    arguments = {"image_features": zimg, "text_features": ztxt, "logit_scale": torch.tensor(4.5)}
    with pytest.raises(ValueError, match=message):
        SigLipLoss()(**arguments | change)


@pytest.fixture(scope="module")
def ranks():
    """Three processes, on which the communicator of the package is."""
    with Ranks(3) as ranks:
        yield ranks


def steps(ranks, kind, exchange, counts):
    parts = [(kind, exchange, counts)] * len(counts)
    return ranks.run("subjects.data_parallel:step", parts)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_on_ranks_under_ddp_it_gives_open_clips_losses_and_gradients(ranks, world_size, exchange):
    losses()
    counts = [4] * world_size
    ours, theirs = (steps(ranks, kind, exchange, counts) for kind in ("ours", "open_clip"))
    for (loss, grads), (want_loss, want_grads) in zip(ours, theirs, strict=True):
        assert abs(loss - want_loss) <= 1e-12 * want_loss
        for grad, want in zip(grads, want_grads, strict=True):
            np.testing.assert_allclose(grad, want, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [[4, 4], [5, 2, 3]])
def test_on_ranks_the_mean_is_the_loss_of_all_pairs_in_one_process(ranks, counts):
    found = steps(ranks, "ours", "bidir", counts)
    model = towers()
    batches = (pairs(rank, n) for rank, n in enumerate(counts))
    images, texts = (torch.cat(parts) for parts in zip(*batches, strict=True))
    loss = SigLipLoss()(*model(images, texts))
    loss.backward()
    assert np.mean([value for value, _ in found]) == pytest.approx(loss.item(), rel=1e-12)
    for _, grads in found:
        for grad, parameter in zip(grads, model.parameters(), strict=True):
            np.testing.assert_allclose(grad, parameter.grad.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.slow
def test_a_rank_that_is_not_the_groups_is_refused(ranks):
    with pytest.raises(Exception, match="rank and world_size must be those of the default"):
        ranks.run("subjects.data_parallel:step_as_another_rank", [()] * 2)
