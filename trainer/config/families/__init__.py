"""Families of pretrained encoder-decoders: what a config.json says about `model:`, and what tensors are called here.

A family is one row below; its file has its fields and names. A new one is a file (or some lines beside its kin) and a
row.
"""

from transpooler.trainer.config.families import bart, longformer, own, pegasus, t5
from transpooler.trainer.config.families.family import Family

FAMILIES: dict[str, Family] = {
    "transpooler": own.EXPORT,
    "bart": bart.BART,
    "mbart": bart.MBART,
    "plbart": bart.PLBART,
    "blenderbot": bart.BLENDERBOT,
    "blenderbot-small": bart.BLENDERBOT_SMALL,
    "pegasus": pegasus.PEGASUS,
    "marian": pegasus.MARIAN,
    "m2m_100": pegasus.M2M_100,
    "pegasus_x": pegasus.PEGASUS_X,
    "led": longformer.LED,
    "t5": t5.T5,
    "mt5": t5.MT5,
    "umt5": t5.UMT5,
    "longt5": t5.LONGT5,
}
"""By the `model_type` of config.json."""
