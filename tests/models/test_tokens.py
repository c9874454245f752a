"""Patches and places: they go there and back, and mean the same at every size."""

import pytest
import torch

from tttstream.models.tokens import PatchTokens, grid_positions, patchify, unpatchify


@pytest.mark.parametrize("size", [(8, 8), (16, 24)], ids=str)
def test_patches_convert_to_pictures_and_back(size: tuple[int, int]) -> None:
    frames = torch.rand(2, 3, 3, *size)
    patches = patchify(frames, 4)
    assert patches.shape == (2, 3, size[0] * size[1] // 16, 48)
    assert torch.equal(unpatchify(patches, 4, *size), frames)


def test_patches_are_in_reading_order() -> None:
    frame = torch.zeros(1, 1, 3, 8, 12)
    frame[..., 4:, 8:] = 1.0
    assert patchify(frame, 4).mean(-1)[0, 0].tolist() == [0, 0, 0, 0, 0, 1]


def test_places_differ_and_depend_on_the_share_of_the_picture() -> None:
    coarse = grid_positions(4, 4, 34)
    assert coarse.shape == (16, 34)
    assert torch.cdist(coarse, coarse).fill_diagonal_(1).min() > 0.1
    fine = grid_positions(12, 12, 34).view(12, 12, -1)
    assert torch.allclose(fine[1::3, 1::3].flatten(0, 1), coarse, atol=1e-5)


def test_registers_come_after_the_patches() -> None:
    tokens = PatchTokens(size=8, patch=4, dim=16, registers=3)
    x = tokens(torch.rand(2, 5, 3, 8, 8))
    assert x.shape == (2, 5, 7, 16)
    assert torch.equal(x[1, 4, 4:], tokens.registers)
