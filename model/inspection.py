"""What the poolers chose: the weight of each token through all stages, and statistics of the last batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from transpooler.model.encoder import TranspoolerEncoder
from transpooler.model.ops.soft_topk.tournament import front_order
from transpooler.model.outputs import PooledStage, Selection

NUM_TENTHS = 10


@torch.no_grad()
def select(encoder: TranspoolerEncoder, input_ids_BN: Tensor, attention_mask_BN: Tensor | None) -> Selection:
    """Run the encoder in evaluation mode and follow each token through its stages."""
    training = encoder.training
    if training:
        encoder.eval()
    try:
        stages = encoder(input_ids_BN, attention_mask_BN, output_pooling=True).pooled_stages
    finally:
        if training:
            encoder.train()
    mask = torch.ones_like(input_ids_BN) if attention_mask_BN is None else attention_mask_BN
    return follow(stages, mask.bool())


def follow(stages: Sequence[PooledStage], mask_BN: Tensor) -> Selection:
    """Follow each token through the stages; mask_BN bool, False = padding."""
    order = front_order(mask_BN)
    slots = torch.arange(mask_BN.shape[1], device=mask_BN.device).expand_as(order)
    slots = torch.where(mask_BN.gather(1, order), slots, -1)
    weights, stage_weights = (slots >= 0).float(), []
    for stage in stages:
        at = slots.clamp(min=0)
        weights = torch.where(slots >= 0, weights * stage.weights_BN.gather(1, at), 0)
        slots = torch.where(slots >= 0, stage.groups_BN.gather(1, at), -1)
        stage_weights.append(_restore_order(weights, order))
    return Selection(_restore_order(weights, order), _restore_order(slots, order), stage_weights)


@torch.no_grad()
def pooling_statistics(stages: Sequence[PooledStage]) -> dict[str, float]:
    """Per stage i: `pool{i}_mean_top_weight` and `pool{i}_share_tenth0` to `9`.

    The first is the mean over filled slots of the largest weight that flowed into one, for operators that score; the
    others are the shares of these winners that stood in each tenth of their document, as it was before the stage.
    Documents that fit into their slots are left out, since nothing is chosen there; a stage that pooled no document has
    no numbers. Costs nothing until it is called; then a few transfers to the host.
    """
    numbers = {}
    for index, stage in enumerate(stages):
        pooled_B = stage.mask_BN.sum(1) > stage.groups_BN.amax(1) + 1
        if not pooled_B.any():
            continue
        groups_BN, weights_BN, mask_BN = stage.groups_BN[pooled_B], stage.weights_BN[pooled_B], stage.mask_BN[pooled_B]
        num_slots = int(groups_BN.max()) + 1
        at_BN = groups_BN.clamp(min=0)
        real_BN = torch.where(groups_BN < 0, 0, weights_BN)
        top_BS = real_BN.new_zeros(len(real_BN), num_slots).scatter_reduce(1, at_BN, real_BN, "amax")
        winner_BN = (real_BN > 0) & (real_BN == top_BS.gather(1, at_BN))
        rank_BN = mask_BN.cumsum(1) - 1
        tenth_BN = rank_BN * NUM_TENTHS // mask_BN.sum(1, keepdim=True)
        counts = torch.bincount(tenth_BN[winner_BN], minlength=NUM_TENTHS).float()
        if stage.scored:
            numbers[f"pool{index}_mean_top_weight"] = float(top_BS[top_BS > 0].mean())
        shares = (counts / counts.sum().clamp(min=1)).tolist()
        numbers |= {f"pool{index}_share_tenth{tenth}": share for tenth, share in enumerate(shares)}
    return numbers


def _restore_order(x_BN: Tensor, order_BN: Tensor) -> Tensor:
    """Undo `front_order`."""
    return torch.empty_like(x_BN).scatter_(1, order_BN, x_BN)
