"""Models that were exported here: any block size and pooling may follow."""

from transpooler.trainer.config.families.family import Family, Fields, Values
from transpooler.trainer.config.families.stored import StoredTensors


def _fields(values: Values, stored: StoredTensors) -> Fields:
    from transpooler.model.architecture import SHAPE_FIELDS
    from transpooler.model.ops.schedule import pooling_stage

    found = {name: values[name] for name in SHAPE_FIELDS if name in values}
    found["pooling"] = [pooling_stage(stage) for stage in values.get("pooling", ())]
    return found | {"decoder_start_token_id": values.get("decoder_start_token_id"), "vocab_rows": values["vocab_size"]}


EXPORT = Family(_fields)
