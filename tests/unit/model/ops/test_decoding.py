"""The kernels of decoding against plain torch in float64: every row count, width, dtype of weights and mask."""

import pytest
import torch

from transpooler.model.ops.decoding.kernels import attend_few, pack, packed_linear, quantize


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 13, 32])
@pytest.mark.parametrize(("outputs", "width"), [(1, 1), (16, 64), (70, 33), (33, 130)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_packed_products_are_those_of_the_weights(rows, outputs, width, with_bias):
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(count, width, generator=generator) for count in (rows, outputs))
    bias = torch.randn(outputs, generator=generator) if with_bias else None
    rounded, scales = quantize(weight)
    for kept, factors in ((weight, None), (weight.bfloat16(), None), (rounded, scales)):
        exact = kept.double() * (1 if factors is None else factors[:, None])
        wanted = x.double() @ exact.T + (0 if bias is None else bias)
        found = packed_linear(x, pack(kept), factors, bias, outputs)
        # Half a step of each input, at most: none in float32, of 8 bits in bfloat16, of 15 for the greatest with int8.
        steps = {torch.float32: 0 * x, torch.bfloat16: x.abs() * 2**-8, torch.int8: x.abs().amax(1, True) / 32512}
        bound = steps[kept.dtype].double().expand(rows, width) @ exact.abs().T
        excess = (found.double() - wanted).abs() - bound
        assert excess.max() < 1e-6 * width + 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_rows_of_zeros_and_broken_rows_stay_what_they_are(dtype):
    x, bias = torch.randn(5, 40), torch.randn(20)
    x[1], x[3, 7] = 0, torch.nan
    weight = torch.randn(20, 40)
    kept, factors = quantize(weight) if dtype == torch.int8 else (weight.to(dtype), None)
    found = packed_linear(x, pack(kept), factors, bias, 20)
    assert torch.equal(found[1], bias)
    assert found[3].isnan().all()
    assert found[[0, 1, 2, 4]].isfinite().all()


def test_leading_dimensions_are_rows():
    weight, x = torch.randn(48, 100), torch.randn(3, 100, 2).transpose(1, 2)
    found = packed_linear(x, pack(weight), None, None, 48)
    torch.testing.assert_close(found, x @ weight.T, atol=1e-4, rtol=1e-5)


def test_products_do_not_depend_on_the_number_of_rows_beside_them():
    weight, x = torch.randn(48, 100), torch.randn(6, 100)
    packed = pack(weight)
    whole = packed_linear(x, packed, None, None, 48)
    four = packed_linear(x[:4], packed, None, None, 48)
    torch.testing.assert_close(four, whole[:4], atol=1e-5, rtol=1e-5)


def test_rounding_to_int8_is_off_by_half_a_step_at_most():
    weight = torch.randn(20, 64)
    weight[3] = 0
    rounded, scales = quantize(weight)
    assert ((rounded * scales[:, None] - weight).abs() <= scales[:, None] * 0.5001).all()
    assert rounded.abs().amax(1)[[0, 1, 2]].tolist() == [127] * 3


@pytest.mark.parametrize("num_keys", [1, 7, 16, 300])
@pytest.mark.parametrize("num_queries", [1, 3, 4, 9])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_of_few_queries_is_softmax_attention(num_keys, num_queries, masked):
    generator = torch.Generator().manual_seed(num_keys)
    q = 3 * torch.randn(2, 3, num_queries, 32, generator=generator)
    # As a cache that is a view of (B, M, G, K) has them.
    k, v = (torch.randn(2, num_keys, 3, 32, generator=generator).transpose(1, 2) for _ in range(2))
    mask = torch.rand(2, 1, num_queries, num_keys, generator=generator) > 0.4 if masked else None
    expanded = None if mask is None else mask.expand(2, 3, num_queries, num_keys)
    scores = q.double() @ k.double().transpose(2, 3) * 0.2
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    wanted = scores.softmax(-1).nan_to_num(0) @ v.double()
    found = attend_few(q, k, v, expanded, 0.2)
    torch.testing.assert_close(found.double(), wanted, atol=2e-6, rtol=2e-5)


def test_a_query_without_keys_gets_zeros_and_a_masked_key_no_weight():
    q, k = torch.randn(1, 1, 2, 16), torch.randn(1, 1, 5, 16)
    v = torch.randn(1, 1, 5, 16)
    v[:, :, 4] = 1e30
    mask = torch.tensor([[False] * 5, [True, True, True, True, False]])[None, None]
    found = attend_few(q, k, v, mask, 0.25)
    assert found[0, 0, 0].eq(0).all()
    assert found[0, 0, 1].abs().max() < 10


def test_scores_far_apart_neither_overflow_nor_vanish():
    q, k = torch.ones(1, 1, 1, 16), torch.zeros(1, 1, 3, 16)
    k[0, 0, 1], k[0, 0, 2] = 1e4, -1e4
    v = torch.arange(3.0)[None, None, :, None].expand(1, 1, 3, 16).contiguous()
    assert attend_few(q, k, v, None, 1.0).eq(1).all()
