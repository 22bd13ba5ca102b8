"""Each device of a group holds the validation images that it embeds, and all leave out the same."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

import siglip_mpi
import siglip_ref as sr
from siglip_ref.backend import NumpyBackend
from siglip_train.corpus import open_tokenizer, read_validation
from siglip_train.datasets import SampleError, Skips
from siglip_train.evaluation import embed_task, hold_images, make_encoders, make_tasks, takes
from siglip_train.settings import Settings
from sources_of_pairs import write_rows

WORLD_SIZE = 3
COUNT, DAMAGED = 200, (3, 70)


def write_images(folder, *, split):
    """Different pictures of which two are damaged; with `split` some are said to be `seen`."""
    rows = []
    for number in range(COUNT):
        Image.new("RGB", (8, 8), (number, 0, 255)).save(folder / f"{number}.png")
        rows.append({"file": f"{number}.png", "caption": f"thing {number}"})
        rows[-1] |= {"seen": number % 3 == 0} if split else {}
    for number in DAMAGED:
        (folder / f"{number}.png").write_bytes(b"damaged")
    write_rows(folder, "captions.jsonl", rows)


def can_be_read(pair):
    try:
        return bool(pair.image.size)
    except SampleError:
        return False


@pytest.mark.parametrize("split", [False, True])
def test_devices_hold_what_they_embed_and_skip_what_one_skips(tmp_path, split):
    write_images(tmp_path, split=split)
    settings = Settings(
        validation=(str(tmp_path),), image_size=8, patch_size=4, width=16, num_heads=2
    ).replace(image_depth=1, text_depth=1)
    tokenizer = open_tokenizer(settings)
    config = settings.model_config(tokenizer.vocab_size)
    params = sr.init_params(config, np.random.default_rng(0))
    encoders = make_encoders(config, NumpyBackend())

    def embed(tasks, comm=None):
        arguments = params, encoders, tokenizer, NumpyBackend(), map, comm
        return [embed_task(task, *arguments) for task in tasks]

    def program(mpi):
        with siglip_mpi.communicator(mpi) as comm:
            skips = Skips()
            held = partial(takes, comm=comm)
            pairs = read_validation(settings, config, skips, most=COUNT, held=held)
            tasks = make_tasks(pairs)
            hold_images(tasks, comm)
            images = [pair.image for pair in pairs]
            comm.gather((0,))  # all have read
            if comm.rank == 0:
                for path in tmp_path.glob("*.png"):
                    path.unlink()
            comm.gather((0,))
            return images, skips.summary(), embed(tasks, comm), sum(map(can_be_read, pairs))

    skips = Skips()
    alone = read_validation(settings, config, skips, most=COUNT)
    assert skips.total == len(DAMAGED)
    devices = siglip_mpi.simulate(WORLD_SIZE, program)
    wanted = embed(make_tasks(alone))  # of images that are no longer on the disk
    for images, summary, embedded, held in devices:
        assert summary == skips.summary()
        np.testing.assert_array_equal(images, [pair.image for pair in alone])
        for part, want in zip(embedded, wanted, strict=True):
            np.testing.assert_array_equal(part.zimg, want.zimg, strict=True)
        assert held < len(alone)
    if not split:  # besides its own, each has the last image
        assert sum(held for *_, held in devices) == len(alone) + WORLD_SIZE - 1
