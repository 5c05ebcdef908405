"""Make a pooling model of pretrained weights, without training: a folder that summarize, evaluate and export take.

WEIGHTS is a folder, or a repository of the Hugging Face hub: a BART, PEGASUS, T5 or one of their kin, or a causal
language model, which then reads what an encoder of its own first layers keeps. New scorers are random, so a model that
is to choose well has to be trained: `transpooler train train.init_from=FOLDER`.

examples:
  transpooler adopt facebook/bart-large-cnn --pooling 6:512,12:128 --output my-bart
  transpooler adopt flan-t5-base --pooling 6:0.25 --block-size 256 --output my-t5
  transpooler adopt SmolLM2-135M-Instruct --pooling 8:0.125 --output my-reader model.encoder_layers=8 model.chat=true
"""

import argparse
from pathlib import Path

from transpooler.launch.arguments import config_settings, split_settings, whole


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("weights", metavar="WEIGHTS", help="folder, or OWNER/NAME of the hub")
    parser.add_argument("settings", nargs="*", metavar="CONFIG|key=value", help="YAML files and single settings")
    parser.add_argument(
        "--pooling",
        type=pooling,
        metavar="LAYER:KEEP,...",
        help="after which encoder layers to keep how much: a whole number is tokens, one with a point a share "
        "(6:512,12:128 or 6:0.25; default: model.pooling, else nothing is pooled)",
    )
    parser.add_argument(
        "--block-size", type=whole, metavar="N", help="tokens of an attention block of the encoder; 0 = no blocks"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")


def pooling(text: str) -> str:
    """A schedule as `model.pooling` takes it, from `LAYER:KEEP,...`."""
    stages = []
    for entry in text.split(","):
        layer, _, keep = entry.strip().partition(":")
        if not layer.isdecimal() or not keep.replace(".", "", 1).isdecimal():
            raise argparse.ArgumentTypeError(f"{entry.strip()!r} is not LAYER:KEEP, such as 6:512 or 6:0.25")
        stages.append(f"{{after_layer: {layer}, {'ratio' if '.' in keep else 'length'}: {keep}}}")
    return f"[{', '.join(stages)}]"


def run(parsed: argparse.Namespace) -> None:
    """`transpooler adopt`."""
    from transpooler.trainer.config import load_config
    from transpooler.trainer.weights.export import export_start

    own = [f"run={parsed.output}", f"train.init_from={parsed.weights}"]
    if parsed.pooling is not None:
        own.append(f"model.pooling={parsed.pooling}")
    if parsed.block_size is not None:
        own.append(f"model.block_size={parsed.block_size or 'null'}")
    files, overrides = split_settings(config_settings(parsed.settings))
    export_start(load_config(files, [*overrides, *own]), parsed.output)
    print(parsed.output)
