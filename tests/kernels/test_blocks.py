"""The blocks in which kernels of token mode walk a row: where they lie, and what is kept between them."""

from __future__ import annotations

import pytest
import torch

from tttstream_kernels import MLP, Inner, Linear
from tttstream_kernels.blocks import blocks, span_of

pytest.importorskip("triton", reason="triton is not installed")

from tttstream_kernels import token_triton


@pytest.mark.parametrize("inner", [Linear(), MLP()], ids=lambda inner: inner.name)
def test_checkpoints_grow_with_the_square_root_of_the_tokens(inner: Inner) -> None:
    """16 times the tokens: 4 times the group, and at most 4 times the memory of checkpoints and scratch together."""
    sizes = []
    for tokens in (1024, 16 * 1024):
        span = span_of(tokens, 16)
        with torch.device("meta"):
            q, sums = torch.empty(1, tokens, 2, 64), torch.empty(1, 2, inner.size(64))
            tau, phase = torch.empty(16), torch.empty(1)
        learned = (sums, sums, sums[0], q[0, 0], q[0, 0], tau, None, None)
        rows = token_triton.Rows(inner.name, q, q, q, q[..., 0], *learned, phase, None, None, False, 1, span)
        kept, scratch = token_triton.room(rows)[-1], token_triton.scratch(rows)
        sizes.append((span, kept.nbytes, kept.nbytes + sum(part.nbytes for part in scratch)))
    (span, kept, total), (longer_span, more_kept, more_total) = sizes
    assert longer_span == 4 * span
    assert more_kept <= 4 * kept
    assert more_total <= 4 * total
    assert total < 20 * inner.size(64) * 4 * 2 + 16 * 1024 * 8


def test_the_layout_of_blocks() -> None:
    reset = torch.zeros(2, 12, dtype=torch.bool)
    reset[0, 5] = reset[0, 6] = reset[1, 9] = True
    phase, lengths = torch.tensor([3, 0], dtype=torch.int32), torch.tensor([12, 8])
    cut = blocks(phase, lengths, reset, 12, 4, 4, 8)
    assert cut.number is not None
    assert cut.begins is not None
    assert cut.first is not None
    assert cut.number.tolist() == [5, 2]  # the reset beyond the length of row 1 does not count
    assert cut.begins[..., 0].tolist() == [[0, 1, 5, 6, 10] + [12] * 8, [0, 4] + [8] * 11]
    assert [row[:n] for row, n in zip(cut.begins[..., 1].tolist(), [5, 2], strict=True)] == [[3, 0, 0, 0, 0], [0, 0]]
    assert cut.first.tolist() == [[0, 4, 5], [0, 2, 2]]
    assert cut.end.tolist() == [2, 0]
    halves = blocks(phase, lengths, reset, 12, 4, 2, 8)
    assert halves.number is not None
    assert halves.begins is not None
    assert halves.first is not None
    assert halves.number.tolist() == [7, 4]
    assert halves.begins[0, :8, 0].tolist() == [0, 1, 3, 5, 6, 8, 10, 12]
    assert halves.begins[0, :7, 1].tolist() == [3, 0, 2, 0, 0, 2, 0]
    assert halves.first.tolist() == [[0, 6, 7], [0, 4, 4]]  # segments begin where mini-batches do
