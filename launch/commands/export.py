"""Turn a checkpoint of a run into a Hugging Face model folder, or write an older such folder anew.

examples:
  transpooler export runs/finetune --output my-model
  transpooler export runs/finetune --output my-model --step 1000
  transpooler export old-model --output my-model    today's code beside the same weights
  transpooler export runs/finetune --output my-onnx --format onnx --length 1024,8192
"""

import argparse
from pathlib import Path

from transpooler.common import UserError, split_list
from transpooler.launch.arguments import positive
from transpooler.trainer.run_folder import RunFolder, require_run


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or an exported model")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--step", type=positive, metavar="N", help="the checkpoint of this step (default: the newest)")
    parser.add_argument(
        "--format",
        choices=("transformers", "onnx", "openvino"),
        default="transformers",
        help="what reads it; onnx and openvino write graphs (default: transformers)",
    )
    parser.add_argument(
        "--length",
        metavar="N[,N]",
        help="tokens to which the encoder's graphs pad documents, one graph a length (default: data.max_source_tokens)",
    )


def run(parsed: argparse.Namespace) -> None:
    """`transpooler export`."""
    if parsed.format != "transformers":
        lengths = split_list(parsed.length) if parsed.length is not None else []
        if not all(length.isdecimal() for length in lengths):
            raise UserError(f"--length {parsed.length}: expected numbers of tokens, such as 1024,8192")
        from transpooler.trainer.weights.graphs import export_graphs

        export_graphs(parsed.run, parsed.output, parsed.format, [int(length) for length in lengths], parsed.step)
    elif parsed.length is not None:
        raise UserError("--length is for --format onnx or openvino; other exports read documents of any length")
    elif parsed.step is None and not RunFolder(parsed.run).config.is_file() and (parsed.run / "config.json").is_file():
        from transpooler.trainer.weights.export import renew_export

        renew_export(parsed.run, parsed.output)
    else:
        require_run(parsed.run)
        from transpooler.trainer.weights.export import export_run

        export_run(parsed.run, parsed.output, parsed.step)
    print(parsed.output)
