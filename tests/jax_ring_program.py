"""Losses on rings of 1 to 8 JAX devices of the host, held to the core on one: prints the errors."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import siglip_jax
import siglip_ref as sr
from siglip_ref import losses

jax.config.update("jax_enable_x64", True)


def worst(got, want):
    return max(
        float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(got, want, strict=True)
    )


def main():
    rng = np.random.default_rng(0)
    for world_size in range(1, 9):
        n, d = 3 * world_size, 5
        zimg, ztxt = rng.standard_normal((2, n, d)) / np.sqrt(d)
        inputs = zimg, ztxt, np.asarray(1.5), np.asarray(-2.0)
        ids = rng.integers(0, 4, n)
        mesh = Mesh(np.asarray(jax.devices()[:world_size]), ("ring",))
        for name, groups in (("diagonal", None), ("groups", ids)):
            for check_vma in (True, False):
                shard = partial(jax.shard_map, mesh=mesh, check_vma=check_vma)
                errors = [differentiated(shard, inputs, groups)]
                if groups is not None and check_vma:  # their programs take seconds to compile
                    errors += core(shard, inputs, groups)
                shown = " ".join(f"{error:.1e}" for error in errors)
                print(f"{world_size} {name} check_vma={check_vma}: {shown}", flush=True)


def pairs_of(groups, asarray):
    return losses.diagonal if groups is None else losses.same_group(*2 * (asarray(groups),))


def differentiated(shard, inputs, groups):
    """The error of siglip_jax.ring_sigmoid_loss and its gradients through shard_map."""
    pairs = pairs_of(groups, jax.numpy.asarray)
    loss = partial(siglip_jax.ring_sigmoid_loss, axis_name="ring", tile=2, pairs=pairs)
    ring = shard(loss, in_specs=(P("ring"), P("ring"), P(), P()), out_specs=P())
    value, grads = jax.jit(jax.value_and_grad(ring, argnums=(0, 1, 2, 3)))(*inputs)
    want = losses.tiled_sigmoid_loss(*inputs, pairs=pairs_of(groups, np.asarray))
    return worst((value, *grads), (want[0], *want[1]))


def core(shard, inputs, groups):
    """The errors of the core's rings over a JaxCommunicator."""
    comm = siglip_jax.JaxCommunicator("ring")
    pairs, host = (pairs_of(groups, asarray) for asarray in (jax.numpy.asarray, np.asarray))
    for name, count in (("sigmoid_loss", 4), ("softmax_loss", 3), ("allgather_softmax_loss", 3)):
        specs = (P("ring"), P("ring"), P(), P())[:count]
        ring = partial(getattr(sr.ring, name), comm=comm, pairs=pairs)

        def on_ring(*shards, ring=ring):
            loss, grads = ring(*shards)
            return loss, tuple(grads)

        loss, grads = jax.jit(shard(on_ring, in_specs=specs, out_specs=(P(), specs)))(
            *inputs[:count]
        )
        whole = losses.tiled_sigmoid_loss if count == 4 else losses.tiled_softmax_loss
        want = whole(*inputs[:count], pairs=host)
        yield worst((loss, *grads), (want[0], *want[1]))


if __name__ == "__main__":
    main()
