"""The gradients of a batch on a ring of devices, with a scaled loss, and with a backend's loss."""

import numpy as np
import pytest

import siglip_mpi
import siglip_ref as sr
from agreement import assert_same_bits, assert_same_gradients
from siglip_ref import losses
from siglip_ref.tree import tree_map
from strategies import random_params

CONFIG = sr.SiglipConfig(
    image=sr.ImageConfig(image_size=9, patch_size=4, width=12, depth=2, mlp_dim=10, num_heads=3),
    text=sr.TextConfig(
        vocab_size=17, context_length=5, width=8, depth=1, mlp_dim=14, num_heads=2, out_dim=12
    ),
)
every_loss = pytest.mark.parametrize("loss", ["sigmoid", "softmax"])


def batch(n=4):
    """Random parameters, images and tokens."""
    rng = np.random.default_rng(0)
    images, tokens = rng.uniform(-1, 1, (n, 9, 9, 3)), rng.integers(0, 17, (n, 5))
    return random_params(CONFIG, rng), images, tokens


@every_loss
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_ring_of_devices_gives_the_gradients_of_the_whole_batch(loss, world_size):
    params, images, tokens = batch(5)
    want = sr.loss_and_grads(params, images, tokens, CONFIG, loss)

    def program(mpi):
        comm = siglip_mpi.communicator(mpi)
        cuts = [5 * rank // world_size for rank in (comm.rank, comm.rank + 1)]
        rows = slice(*cuts)
        return sr.loss_and_grads(
            params, images[rows], tokens[rows], CONFIG, loss, comm=comm, tile=2, microbatch=1
        )

    for got in siglip_mpi.simulate(world_size, program):
        assert got[0] == pytest.approx(float(want[0]), rel=1e-13)
        assert_same_gradients(got[1], want[1], 1e-12)


@every_loss
@pytest.mark.parametrize("tile", [None, 3])
def test_a_cotangent_of_the_loss_multiplies_every_gradient(loss, tile):
    params, images, tokens = batch()
    want = sr.loss_and_grads(params, images, tokens, CONFIG, loss, tile=tile)
    got = sr.loss_and_grads(
        params, images, tokens, CONFIG, loss, tile=tile, dloss=np.asarray(2.0**20)
    )
    assert got[0] == want[0]
    assert_same_bits((want[0], got[1]), (want[0], tree_map(lambda g: 2.0**20 * g, want[1])))


def test_a_cotangent_saves_the_gradients_of_float16_towers_from_underflow():
    params, images, tokens = batch()
    # 1e-5 of the loss, as of one pair in a batch of a hundred thousand.
    weights = losses.from_matrix(2 * np.eye(4) - 1, np.full((4, 4), 1e-5))
    narrow = tree_map(lambda p: p.astype(np.float16) if p.ndim else p.astype(np.float32), params)

    def gradients(tree, dtype, dloss):
        _, grads = sr.loss_and_grads(
            tree,
            images.astype(dtype),
            tokens,
            CONFIG,
            pairs=weights,
            dloss=np.asarray(dloss, dtype=np.float32),
        )
        return tree_map(lambda g: g.astype(np.float64) / dloss, grads)

    want = gradients(params, np.float64, 1.0)

    def error(dloss):
        got = gradients(narrow, np.float16, dloss)["img"]["map_head"]["mlp"]["dense_1"]["kernel"]
        true = want["img"]["map_head"]["mlp"]["dense_1"]["kernel"]
        return np.linalg.norm(got - true) / np.linalg.norm(true)

    assert error(2.0**12) < 0.02
    assert error(1.0) > 5 * error(2.0**12)


def test_the_loss_of_a_backend_is_used_for_tiles():
    params, images, tokens = batch()
    calls = []

    def block_loss(*arguments, **options):
        calls.append(options["tile"])
        return losses.tiled_sigmoid_loss(*arguments, **options)

    sr.loss_and_grads(params, images, tokens, CONFIG, tile=3, block_loss=block_loss)
    assert calls == [3]
