"""The operator benchmark times every operator in the same run as `copy_`, so that the ratios compare."""

import time

import torch

from transpooler.benchmarks.soft_topk.speed import Case, speed_rows
from transpooler.model.ops.operators import OPERATORS


def test_every_operator_stands_beside_copy_in_both_passes() -> None:
    case = Case(batch=1, num_tokens=64, k=8, dim=16, dtype=torch.float32, device="cpu")
    rows = speed_rows(case, ["torch"], repeats=1, slow=False, clock=time.perf_counter)
    others = set(OPERATORS) - {"successive_halving", "iterative_softmax"}
    for kind, more in (("forward", {"noise", "torch: tournament", "torch: group sum"}), ("forward + backward", set())):
        timed = {row["what"]: row for row in rows if row["pass"] == kind}
        assert timed.keys() == {"copy_", "steps", "torch"} | others | more
        assert timed["copy_"]["x_copy"] == 1
        assert all(row["x_copy"] > 0 for row in timed.values())
    saved = {row["what"]: row["saved_share"] for row in rows if "saved_share" in row}
    assert saved.keys() == {"steps", "torch"} | others
