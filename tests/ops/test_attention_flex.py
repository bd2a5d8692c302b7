"""The flex backend hands FlexAttention whole blocks, and copies only where some are not."""

from __future__ import annotations

import pytest
import torch

from fastmpi.ops import attention_flex


@pytest.mark.parametrize("total, rows", [(128, 128), (130, 256), (256, 256), (1, 128)])
def test_rows_are_padded_to_whole_blocks_only_where_they_must(total, rows):
    given = [torch.randn(total, heads, 16) for heads in (4, 2, 2)]
    taken = []

    def flex_attention(q, k, v, **options):
        taken.extend((q, k, v))
        return q

    out = attention_flex.attend(*given, None, 1.0, flex_attention)
    assert torch.equal(out, given[0])
    for before, after in zip(given, taken, strict=True):
        assert after.shape[2] == rows and torch.equal(after[0, :, :total], before.transpose(0, 1))
        assert (after.data_ptr() == before.data_ptr()) == (total % 128 == 0)
