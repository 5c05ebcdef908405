"""Copies of tensors in one piece of memory."""

import gc

import torch

from transpooler.model.ops.decoding import huge_pages
from transpooler.model.ops.decoding.huge_pages import HugePages


def test_copies_have_the_values_stand_apart_and_outlive_their_owner(monkeypatch):
    monkeypatch.setattr(huge_pages, "CHUNK_BYTES", 4096)
    pages = HugePages()
    given = [torch.randn(3, 7).T, torch.randn(5).bfloat16(), torch.arange(40_000).to(torch.int8), torch.randn(2, 9)]
    copies = [pages.copy(tensor) for tensor in given]
    del pages
    gc.collect()
    for copy, tensor in zip(copies, given, strict=True):
        assert torch.equal(copy, tensor)
        assert copy.dtype == tensor.dtype
    assert all(copy.is_contiguous() and copy.data_ptr() % 64 == 0 for copy in copies)
    copies[0].zero_()
    assert all(torch.equal(copy, tensor) for copy, tensor in zip(copies[1:], given[1:], strict=True))
    owners = {copy.untyped_storage().data_ptr() for copy in copies}
    assert len(owners) == 3  # 84 and 10 bytes share a chunk, 40,000 need their own, and 72 begin a new one
