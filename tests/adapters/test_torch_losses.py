"""The losses of siglip_torch as functions: values, gradients, and what may be asked of them."""

import weakref
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import library
from siglip_ref import losses
from siglip_ref.losses import diagonal, reweighted, same_group
from strategies import distinct, seeds, unit_rows

torch = library("torch")

import siglip_torch  # noqa: E402
from siglip_torch import sigmoid_loss, softmax_loss, tiled_sigmoid_loss  # noqa: E402

# Of Torch's compiler and of torch.func, about themselves.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script.* is deprecated:DeprecationWarning",
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIZES = distinct("n", "m", "d", most=12)
HALF_DTYPES = DTYPES[2:]


def inputs(seed=0, n=9, m=9, d=5, dtype=torch.float64):
    """Unit rows, t' = 1.5 and b = -2; the scalars in at least float32."""
    rng = np.random.default_rng(seed)
    scalar = torch.promote_types(dtype, torch.float32)
    return (
        *(torch.tensor(unit_rows(rng, rows, d), dtype=dtype) for rows in (n, m)),
        torch.tensor(1.5, dtype=scalar),
        torch.tensor(-2.0, dtype=scalar),
    )


def leaves(*tensors):
    return [x.clone().requires_grad_() for x in tensors]


def plain_sigmoid_loss(zimg, ztxt, t_prime, b):
    """Algorithm 1 of the paper, to be differentiated by Torch."""
    labels = 2 * torch.eye(*(len(z) for z in (zimg, ztxt)), dtype=zimg.dtype) - 1
    logits = t_prime.exp() * zimg @ ztxt.T + b
    return -torch.nn.functional.logsigmoid(labels * logits).sum() / len(zimg)


def plain_softmax_loss(zimg, ztxt, t_prime):
    """Figure 3 of CLIP's paper, to be differentiated by Torch."""
    logits, targets = t_prime.exp() * zimg @ ztxt.T, torch.arange(len(zimg))
    entropy = torch.nn.functional.cross_entropy
    return (entropy(logits, targets) + entropy(logits.T, targets)) / 2


LOSSES = {
    "sigmoid": (sigmoid_loss, plain_sigmoid_loss, 4),
    "softmax": (softmax_loss, plain_softmax_loss, 3),
}
every_loss = pytest.mark.parametrize(("loss", "plain", "arity"), LOSSES.values(), ids=LOSSES.keys())


@given(
    SIZES,
    st.integers(1, 13),
    st.integers(1, 150),
    seeds,
    st.sampled_from(["diagonal", "groups", "weights"]),
)
def test_the_tile_loop_gives_what_the_core_gives(sizes, tile, strip, seed, kind):
    arguments = inputs(seed, **sizes)
    ids = torch.arange(12) % 4
    groups = same_group(ids, ids)
    pairs = {"diagonal": diagonal, "groups": groups, "weights": reweighted(groups, 3.0, 0.5)}[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(siglip_torch.tile_loop, "STRIP", strip)
        got = tiled_sigmoid_loss(*arguments, tile=tile, pairs=pairs)
    want = losses.tiled_sigmoid_loss(*arguments, tile=tile, pairs=pairs)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@given(SIZES, st.integers(0, 12), st.integers(0, 12), st.integers(1, 5), seeds)
def test_a_block_of_a_larger_batch_has_its_matches_wherever_they_are(
    sizes, first_row, first_column, tile, seed
):
    zimg, ztxt, *_ = arguments = inputs(seed, **sizes)
    order = torch.randperm(len(zimg), generator=torch.Generator().manual_seed(seed))
    columns = first_column + torch.arange(len(ztxt))
    for rows in (first_row + torch.arange(len(zimg)), first_row + order):
        options = {"rows": rows, "columns": columns, "total": 31, "tile": tile}
        got = tiled_sigmoid_loss(*arguments, **options)
        want = losses.tiled_sigmoid_loss(*arguments, **options)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("b", [-300.0, -12.0, -2.0, 0.0, 3.0, 300.0])
@pytest.mark.parametrize("t_prime", [0.0, np.log(10), np.log(120)])
@pytest.mark.parametrize("strip", [64 * 64, 64 * 12])
def test_a_mismatch_counts_whether_its_probability_is_tiny_or_one(monkeypatch, t_prime, b, strip):
    monkeypatch.setattr(siglip_torch.tile_loop, "STRIP", strip)
    zimg, ztxt, *_ = inputs(n=64, m=64)
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        scalars = (torch.tensor(x, dtype=dtype) for x in (t_prime, b))
        arguments = (zimg.to(dtype), ztxt.to(dtype), *scalars)
        got = tiled_sigmoid_loss(*arguments)
        want = losses.tiled_sigmoid_loss(*(x.double() for x in arguments))
        assert abs(got[0] - want[0]) <= rtol / 10 * want[0]
        for found, wanted in zip(got[1], want[1], strict=True):
            assert (found - wanted).abs().max() <= rtol * wanted.abs().max()


@pytest.mark.parametrize("odd", [float("inf"), float("-inf"), float("nan")])
def test_a_loss_that_is_no_number_is_not_hidden(odd):
    zimg, ztxt, t_prime, _ = inputs(n=64, m=64)
    assert not tiled_sigmoid_loss(zimg, ztxt, t_prime, torch.tensor(odd).double())[0].isfinite()
    zimg[3, 2] = odd
    assert not tiled_sigmoid_loss(zimg, ztxt, t_prime, torch.tensor(-10.0).double())[0].isfinite()


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_have_the_dtypes_of_the_core(dtype):
    arguments = inputs(dtype=dtype)
    got, want = tiled_sigmoid_loss(*arguments), losses.tiled_sigmoid_loss(*arguments)
    assert got[0].dtype == want[0].dtype
    assert [x.dtype for x in got[1]] == [x.dtype for x in want[1]]
    assert [x.shape for x in got[1]] == [x.shape for x in want[1]]


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_sixteen_bit_embeddings_are_summed_in_float32(dtype):
    zimg, ztxt, t_prime, b = inputs(n=300, m=300, dtype=dtype)
    loss, got = tiled_sigmoid_loss(zimg, ztxt, t_prime, b, tile=7)
    exact, want = losses.tiled_sigmoid_loss(*(x.double() for x in (zimg, ztxt, t_prime, b)))
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    # To half a unit in the last place of the dtype, and the rounding of sums in float32.
    for x, y in ((got.dzimg, want.dzimg), (got.dztxt, want.dztxt)):
        rounding = torch.finfo(dtype).eps / 2 * y.abs() + torch.finfo(dtype).tiny
        assert torch.all((x.double() - y).abs() <= rounding + 1e-5 * y.abs().max())


@every_loss
def test_no_input_is_written_to(loss, plain, arity):
    given_inputs = leaves(*inputs()[:arity])
    before = [x.detach().clone() for x in given_inputs]
    loss(*given_inputs, tile=4).backward()
    assert all(torch.equal(x, y) for x, y in zip(given_inputs, before, strict=True))


@every_loss
@given(seed=seeds, n=st.integers(1, 12), tile=st.integers(1, 13))
def test_value_and_gradients_are_those_of_autograd_on_the_plain_formula(
    loss, plain, arity, seed, n, tile
):
    ours, theirs = (leaves(*inputs(seed, n=n, m=n)[:arity]) for _ in range(2))
    got, want = loss(*ours, tile=tile), plain(*theirs)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    grads = (torch.autograd.grad(3 * value, xs) for value, xs in ((got, ours), (want, theirs)))
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-12)


@every_loss
def test_the_gradients_pass_torchs_own_check(loss, plain, arity):
    assert torch.autograd.gradcheck(lambda *x: loss(*x, tile=4), leaves(*inputs()[:arity]))


def test_other_pairs_are_differentiable_too():
    ids = torch.arange(9) % 4
    pairs = reweighted(same_group(ids, ids), 3.0, 0.5)
    arguments = leaves(*inputs(m=7))
    assert torch.autograd.gradcheck(lambda *x: sigmoid_loss(*x, pairs=pairs, tile=4), arguments)
    assert torch.autograd.gradcheck(lambda *x: softmax_loss(*x, pairs=pairs, tile=4), arguments[:3])


@every_loss
def test_without_anyone_to_ask_for_gradients_the_loss_is_the_same(loss, plain, arity):
    asked = leaves(*inputs()[:arity])
    with torch.no_grad():
        silent = loss(*asked)
    assert silent.item() == loss(*asked).item() == loss(*inputs()[:arity]).item()
    assert not silent.requires_grad


def test_only_those_who_ask_get_a_gradient():
    zimg, ztxt, t_prime, b = inputs()
    ztxt.requires_grad_()
    sigmoid_loss(zimg, ztxt, t_prime, b).backward()
    assert ztxt.grad is not None
    assert zimg.grad is t_prime.grad is b.grad is None


@every_loss
def test_second_derivatives_are_refused_by_name(loss, plain, arity):
    arguments = leaves(*inputs()[:arity])
    (dzimg, *_) = torch.autograd.grad(loss(*arguments), arguments, create_graph=True)
    with pytest.raises(RuntimeError, match="siglip_torch can be differentiated once"):
        dzimg.square().sum().backward()


@every_loss
def test_torch_func_grad_works_and_vmap_and_forward_mode_say_that_they_do_not(loss, plain, arity):
    arguments = inputs()[:arity]
    got, want = (torch.func.grad(f, argnums=tuple(range(arity)))(*arguments) for f in (loss, plain))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(torch.func.grad(loss))(*(x.unsqueeze(0) for x in arguments))
    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(loss, arguments, arguments)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_bit(loss, plain, arity, dtype):
    found = []
    for enabled in (False, True):
        arguments = leaves(*inputs(dtype=torch.float32)[:arity])
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            value = loss(*arguments)
        found.append((value, *torch.autograd.grad(value, arguments)))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


@every_loss
def test_a_loss_scale_rescues_gradients_below_the_least_float16(loss, plain, arity):
    zimg, ztxt, *scalars = leaves(*inputs(n=64, m=64, d=16, dtype=torch.float16)[:arity])
    scalars[0].data.fill_(-9.0)
    exact = leaves(*(x.double() for x in (zimg, ztxt, *scalars)))
    (got,) = torch.autograd.grad(2.0**15 * loss(zimg, ztxt, *scalars), [zimg])
    (want,) = torch.autograd.grad(2.0**15 * plain(*exact), exact[:1])
    assert want.abs().max() / 2**15 < torch.finfo(torch.float16).smallest_normal
    torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=1e-6)


@pytest.mark.usefixtures("unchecked")
@every_loss
@pytest.mark.parametrize("dynamic", [False, True])
def test_it_compiles_into_one_graph(loss, plain, arity, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (9, 11):
        arguments = leaves(*inputs(n=n, m=n)[:arity])
        got, want = compiled(*arguments), loss(*arguments)
        assert got.item() == want.item()
        pair = (torch.autograd.grad(2 * x, arguments) for x in (got, want))
        assert all(torch.equal(x, y) for x, y in zip(*pair, strict=True))
        with torch.no_grad():
            assert compiled(*arguments).item() == want.item()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_compiler_expects_the_shapes_dtypes_and_strides_that_come(name, dtype):
    zimg, ztxt, t_prime, b = inputs(dtype=dtype)
    arguments = {"sigmoid": (t_prime.exp(), b, 4, True), "softmax": (t_prime, 4)}[name]
    operator = getattr(torch.ops.siglip_torch, f"diagonal_{name}_loss").default
    for x in (zimg, zimg.T.contiguous().T, zimg.repeat(1, 2)[:, :5]):
        torch.library.opcheck(operator, (x, ztxt, *arguments), test_utils="test_faketensor")


@pytest.mark.usefixtures("unchecked")
@every_loss
def test_other_pairs_compile_with_a_break_in_the_graph(loss, plain, arity):
    torch._dynamo.reset()
    ids = torch.arange(9) % 4
    arguments = leaves(*inputs()[:arity])

    def twice(*inputs):
        return 2 * loss(*inputs, pairs=same_group(ids, ids), tile=4)

    compiled = torch.compile(twice, backend="aot_eager")
    got, want = (torch.autograd.grad(f(*arguments), arguments) for f in (compiled, twice))
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


REFUSED = {
    "zimg must be a matrix": {"zimg": lambda x: x[0]},
    "rows of one size": {"ztxt": lambda x: x[:, :3]},
    "t_prime must be a 0-d array": {"t_prime": lambda x: x[None]},
    "b must be a 0-d array": {"b": float},
    "got 9 images and 6 texts": {"ztxt": lambda x: x[:6]},
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("message", REFUSED)
def test_bad_arguments_are_named(message):
    arguments = dict(zip(("zimg", "ztxt", "t_prime", "b"), inputs(), strict=True))
    for name, change in REFUSED[message].items():
        arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=message):
        sigmoid_loss(**arguments)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtypes", [(torch.int64, torch.float32), (torch.float32, torch.float64)])
def test_embeddings_of_two_precisions_or_none_are_refused(dtypes):
    zimg, ztxt, t_prime, b = inputs()
    with pytest.raises(TypeError, match=f"got {dtypes[0]} and {dtypes[1]}"):
        sigmoid_loss(zimg.to(dtypes[0]), ztxt.to(dtypes[1]), t_prime, b)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("tile", [0, -3, 2.0])
def test_a_tile_is_a_positive_integer(tile):
    with pytest.raises(ValueError, match=r"tile must be a positive integer"):
        tiled_sigmoid_loss(*inputs(), tile=tile)


def peak_bytes(run):
    """Most bytes that Torch's allocator held during `run()`, beyond what it held before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = run()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    del result
    return most


@pytest.mark.parametrize(("b", "tiles"), [(-10.0, 3), (0.0, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_beside_inputs_and_outputs_does_not_grow_with_the_batch(dtype, b, tiles):
    tile, d = 64, 24
    width = torch.finfo(dtype).bits // 8
    extra = []
    for n in (128, 256, 1024):
        arguments = (*inputs(n=n, m=n, d=d, dtype=dtype)[:3], torch.tensor(b, dtype=dtype))
        outputs = 2 * n * d * width
        extra.append(peak_bytes(lambda a=arguments: tiled_sigmoid_loss(*a, tile=tile)) - outputs)
    tiles_and_two_of_rows = (tiles * tile**2 + 2 * tile * d) * width
    assert all(0 < bytes_ < tiles_and_two_of_rows + 4096 for bytes_ in extra)
    assert all(abs(x - y) < 1024 for x, y in pairwise(extra))


def test_nothing_of_the_pairs_is_kept_for_the_backward_pass():
    n, d = 512, 8
    arguments = leaves(*inputs(n=n, m=n, d=d))
    loss = sigmoid_loss(*arguments)
    assert sorted(x.numel() for x in loss.grad_fn.saved_tensors) == [1, 1, n * d, n * d]
    graph = weakref.ref(loss)
    loss.backward()
    del loss
    assert graph() is None


def test_the_package_exports_what_it_names():
    assert all(hasattr(siglip_torch, name) for name in siglip_torch.__all__)
