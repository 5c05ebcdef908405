"""What a run remembers."""

from transpooler.trainer.state import TrainState


def test_the_ledger_tells_orders_apart():
    states = [TrainState() for _ in range(3)]
    for state, batches in zip(states, ([["a", "b"], ["c"]], [["a"], ["b", "c"]], [["a", "b"], ["c"]]), strict=True):
        for keys in batches:
            state.record(keys)
    assert states[0].ledger == states[2].ledger != states[1].ledger
