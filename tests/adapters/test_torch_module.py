"""siglip_torch.SigLipLoss in the place of open_clip's."""

import inspect
import re

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

PROGRAM = "torch_ring_program"
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
    for method in ("__init__", "forward", "get_logits", "get_ground_truth"):
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_number_serves_as_scale_with_the_digits_of_the_loss(dtype):
    numbers, wide = (4.7, -2.3), torch.promote_types(dtype, torch.float32)
    tensors = [torch.tensor(x, dtype=wide) for x in numbers]
    found, want = (SigLipLoss()(*features(dtype=dtype), *x) for x in (numbers, tensors))
    assert found.dtype == want.dtype == wide
    assert torch.equal(found, want)


@pytest.mark.parametrize("value", [None, "4.7", 1j])
def test_a_scale_that_is_no_number_is_named(value):
    with pytest.raises(TypeError, match=f"logit_scale must be one number, got {value!r}"):
        SigLipLoss()(*features(), value)


@pytest.mark.parametrize("bias", [None, -2.3])
def test_its_logits_and_labels_are_open_clips(bias):
    ours, theirs = SigLipLoss(), losses().SigLipLoss()
    arguments = (*features(), 4.7, bias)
    torch.testing.assert_close(ours.get_logits(*arguments), theirs.get_logits(*arguments))
    for negative in (False, True):
        labels = (
            x.get_ground_truth("cpu", torch.float16, 3, negative_only=negative)
            for x in (ours, theirs)
        )
        torch.testing.assert_close(*labels, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_features_under_autocast_get_a_loss_in_float32_and_their_gradients(dtype):
    zimg, ztxt = features(n=33, d=7, dtype=dtype)
    t, b = (torch.tensor(x, requires_grad=True) for x in (4.7, -2.3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SigLipLoss()(zimg, ztxt, t, b)
        loss.backward()
    exact = [x.detach().double().requires_grad_() for x in (zimg, ztxt, t, b)]
    want = SigLipLoss()(*exact)
    want.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    for got, wanted in zip((zimg, ztxt, t, b), exact, strict=True):
        assert got.grad.dtype == got.dtype
        tolerance = 2 * torch.finfo(got.dtype).eps * wanted.grad.abs().max()
        assert (got.grad.double() - wanted.grad).abs().max() <= tolerance


def test_features_may_lie_in_memory_in_any_way():
    zimg, ztxt = features()
    turned, spread = zimg.detach().T.contiguous().T, ztxt.detach().repeat(1, 2)[:, :5]
    found = [x.requires_grad_() for x in (turned, spread)]
    assert not any(x.is_contiguous() for x in found)
    got, want = (
        torch.autograd.grad(SigLipLoss()(*x, *scalars()), x) for x in (found, (zimg, ztxt))
    )
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-16)


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


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_chunk_that_is_no_number_of_rows_is_refused(size):
    with pytest.raises(ValueError, match=f"chunk_size must be a positive integer, got {size}"):
        SigLipLoss(chunk_size=size)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit_scale": torch.ones(2)}, r"logit_scale must be one number, got the shape \(2,\)"),
        ({"logit_bias": torch.ones(3)}, r"logit_bias must be one number, got the shape \(3,\)"),
        ({"text_features": torch.ones(4, 5)}, r"got the shapes \(6, 5\) and \(4, 5\)"),
        ({"image_features": torch.ones(6)}, "image_features and text_features must be matrices"),
        (
            dict.fromkeys(("image_features", "text_features"), torch.ones(0, 5)),
            r"row, got .* \(0, 5\)",
        ),
    ],
)
def test_bad_arguments_are_named(change, message):
    zimg, ztxt = features(dtype=torch.float32)
    arguments = {"image_features": zimg, "text_features": ztxt, "logit_scale": torch.tensor(4.5)}
    with pytest.raises(ValueError, match=message):
        SigLipLoss()(**arguments | change)


def test_features_that_are_no_tensors_are_named():
    with pytest.raises(TypeError, match="text_features must be a tensor, got ndarray"):
        SigLipLoss()(features()[0], np.ones((6, 5)), 4.7)


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


@pytest.mark.slow
def test_on_ranks_its_thread_ends_with_it_and_copies_and_new_groups_get_their_own(ranks, tmp_path):
    for threads, values in ranks.run(f"{PROGRAM}:life_of_a_module", [(str(tmp_path),)] * 2):
        assert threads == {"with one": 1, "with a copy": 2, "in another group": 2, "without": 0}
        assert len(values) == 4
        assert len(set(values)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_on_ranks_the_loss_has_the_dtype_that_it_has_in_one_process(ranks, dtype):
    want = torch.promote_types(dtype, torch.float32)
    assert ranks.run(f"{PROGRAM}:dtype_of_the_loss", [(dtype,)] * 2) == [want] * 2


@pytest.mark.slow
def test_a_rank_without_pairs_is_named_on_all(ranks):
    message = r"at least one image and one text.* on rank 1|zimg must be a matrix with at least one"
    for found in ranks.run(f"{PROGRAM}:nothing_on_rank_1", [()] * 3):
        assert re.search(message, found)
