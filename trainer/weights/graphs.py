"""Exports for other engines: graphs of encoder and decoder, by `transformers.exporters`.

encoder.onnx reads one document, padded to a length of its own (encoder-1024.onnx, where several were asked for): with
a length the rounds of halving are settled. prefill.onnx reads what the encoder kept and the first tokens, decode.onnx
one token and the cache; both take any number of documents or beams, and any number of kept tokens.
"""

import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from transpooler.common import UserError, say
from transpooler.data_pipeline.text_tokens import leading_special_ids
from transpooler.model.ops.soft_topk.plain import plain_operations
from transpooler.trainer.run_folder import RunFolder
from transpooler.trainer.weights.export import load_run, save_tokenizer
from transpooler.trainer.weights.models import load_model
from transpooler.trainer.weights.whole_folder import check_free, whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from transpooler.model import PoolingModel, TranspoolerForConditionalGeneration

FORMATS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
"""Engines, and the packages that writing and trying their graphs takes."""
WRITES = ("onnx",)
"""Engines whose graphs also write. OpenVINO 2026.4 crashes (SIGSEGV) over a decoder that is given its cache."""
RUNNERS: dict[str, dict[str, Any]] = {"onnx": {}, "openvino": {"config": {"INFERENCE_PRECISION_HINT": "f32"}}}
"""How their graphs are run. OpenVINO computes in bfloat16 wherever a CPU can, which takes other tokens."""
MAX_DIFFERENCE = 1e-3
"""Of the encoder's output in the engine from torch's: more is a fault of the translation."""


def export_graphs(
    source: Path, output: Path, engine: str, lengths: Sequence[int] = (), step: int | None = None
) -> None:
    """Write the graphs of a run's or an exported model into `output`, in float32, with tokenizer and settings.

    lengths: tokens of the encoder's graphs (none: the greatest that the model was trained with). The folder appears
    complete or not at all. UserError for packages that are missing, models that have no such graphs, wrong lengths.
    """
    if missing := [name for name in FORMATS[engine] if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"--format {engine} needs {', '.join(missing)}; install them: pip install 'transpooler[{engine}]'"
        )
    check_free(output)
    model, tokenizer = _load(source, step)
    longest = int(tokenizer.model_max_length)
    for length in lengths:
        if not 2 <= length <= longest:
            raise UserError(f"--length {length}: this model reads 2 to {longest} tokens; choose lengths among them")
    with whole_folder(output) as incomplete:
        with _quiet(), plain_operations(), torch.no_grad():
            exported = _trace(model.eval().float(), engine, lengths or (longest,))
            differences = _compare(exported, model)
        for name, difference in differences.items():
            say(f"{name}: its output differs from torch's by {difference:.1e} at most")
            if not difference <= MAX_DIFFERENCE:
                raise UserError(f"{source}: the graph {name} computes something else than the model; keep to torch")
        exported.save_pretrained(incomplete)
        save_tokenizer(tokenizer, incomplete, leading_special_ids(tokenizer))
        settings = "".join(f", {name}={value!r}" for name, value in RUNNERS[engine].items())
        text = (README + (WRITING if engine in WRITES else READING)).format(engine=engine, settings=settings)
        (incomplete / "README.md").write_text(text, encoding="utf-8")


def _load(source: Path, step: int | None) -> "tuple[TranspoolerForConditionalGeneration, PreTrainedTokenizerFast]":
    """The model of a run folder or of an exported one; UserError for a compressor."""
    from transpooler.data_pipeline.tokenizer import framing
    from transpooler.model import TranspoolerForConditionalGeneration
    from transpooler.trainer.weights.generation import set_generation

    model: PoolingModel
    if RunFolder(source).config.is_file():
        model, tokenizer, config, _ = load_run(source, step)
        set_generation(model.generation_config, config.generation)
        tokenizer = framing(tokenizer, config.data.source_prefix_ids)
        tokenizer.model_max_length = config.data.max_source_tokens
    else:
        model, tokenizer = load_model(source)
    if not isinstance(model, TranspoolerForConditionalGeneration):
        raise UserError(f"{source}: a compressor has no graphs of its own; its export holds reader/, a stock model")
    model.to(torch.device("cpu"))  # type: ignore[arg-type]  # its own stubs know no device here
    return model, tokenizer


def _trace(model: "TranspoolerForConditionalGeneration", engine: str, lengths: Sequence[int]) -> Any:
    """All graphs as one `ExportedModel`."""
    from transformers import GenerationConfig
    from transformers.exporters import (
        ExportedComponent,
        ExportedModel,
        OnnxConfig,
        OnnxExporter,
        OpenVINOConfig,
        OpenVINOExporter,
    )

    exporter, settings = {"onnx": (OnnxExporter, OnnxConfig), "openvino": (OpenVINOExporter, OpenVINOConfig)}[engine]
    exported = ExportedModel({}, exporter.export_format, model.config)
    if engine in WRITES:
        # Two documents and three first tokens: sizes of one would be taken for constants.
        document = _document(model, min(lengths), rows=2)
        begin = torch.full((2, 3), int(model.config.decoder_start_token_id or 0))
        greedy = GenerationConfig.from_model_config(model.config)
        greedy.update(num_beams=1, do_sample=False, min_new_tokens=3)
        exported = exporter().export_for_generation(
            model, {**document, "decoder_input_ids": begin}, settings(dynamic=True), generation_config=greedy
        )
    exported.generation_config = model.generation_config
    for length in lengths:
        name = "encoder" if len(lengths) == 1 else f"encoder-{length}"
        encoder, document = model.model.encoder, _document(model, length)
        program, metadata = exporter().export_program(encoder, document, settings(dynamic=False))
        metadata.export_config = {}
        exported.components[name] = ExportedComponent(program, metadata)
    exported.to(**RUNNERS[engine])
    return exported


def _compare(exported: Any, model: "TranspoolerForConditionalGeneration") -> dict[str, float]:
    """The largest difference of each encoder's output in the engine, of a document that fills half of it."""
    found = {}
    for name, component in exported.components.items():
        if name.startswith("encoder"):
            length = component.metadata.kwargs["input_ids"]["shape"][1]
            document = _document(model, length, filled=(length + 1) // 2)
            expected, got = model.get_encoder()(**document), exported.runners[name](**document)
            # A graph pads what is kept of a share to what it keeps of its whole length.
            read = [each.last_hidden_state[each.attention_mask.bool()] for each in (expected, got)]
            alike = read[0].shape == read[1].shape
            found[name] = float((read[0] - read[1]).abs().max()) if alike else float("inf")
    return found


def _document(
    model: "TranspoolerForConditionalGeneration", length: int, rows: int = 1, filled: int | None = None
) -> dict[str, Tensor]:
    """A made-up document, padded behind its first `filled` tokens."""
    ids = torch.randint(0, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(length) < (length if filled is None else filled)).long().expand(rows, length).contiguous()
    return {"input_ids": torch.where(mask > 0, ids, int(model.config.pad_token_id or 0)), "attention_mask": mask}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own reports, which are about torch's inner life."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


README = """# A pooling encoder-decoder for {engine}

Written by `transpooler export --format {engine}`. The graphs are float32.

- `encoder*`: `input_ids` and `attention_mask` (1, length), int64; a shorter document is padded at its end, its mask 0
  there. It returns the kept tokens: `last_hidden_state` (1, k, width), `attention_mask` (1, k), `positions` (1, k).
"""
LOADING = """
`export.json` describes the graphs for `transformers.exporters.ExportedModel`, which runs them:

```python
import torch, transpooler
from transformers import AutoTokenizer, DynamicCache, EncoderDecoderCache
from transformers.exporters import ExportedModel

folder = "."
config = transpooler.TranspoolerConfig.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
graphs = ExportedModel.from_pretrained(folder{settings}).runners
name = next(name for name in graphs if name.startswith("encoder"))
length = graphs[name].metadata.kwargs["input_ids"]["shape"][1]
batch = tokenizer("The document ...", max_length=length, truncation=True, padding="max_length", return_tensors="pt")
"""
READING = f"""{LOADING}kept = graphs[name](input_ids=batch.input_ids, attention_mask=batch.attention_mask)
print(kept["positions"][kept["attention_mask"].bool()])
```
"""
WRITING = f"""- `prefill`: those three as `encoder_outputs.*`, one row a beam, and `decoder_input_ids`. It returns
  `logits` and the cache, `past_key_values.*`.
- `decode`: the same, one new token, and the cache.
{LOADING}given = {{{{"attention_mask": batch.attention_mask}}}}
given["encoder_outputs"] = graphs[name](input_ids=batch.input_ids, attention_mask=batch.attention_mask)
ids, cache = [config.decoder_start_token_id], EncoderDecoderCache(DynamicCache(), DynamicCache())
while len(ids) < 200:
    graph = graphs["prefill" if len(ids) == 1 else "decode"]
    step = graph(decoder_input_ids=torch.tensor([ids[-1:]]), past_key_values=cache, **given)
    ids.append(int(step["logits"][0, -1].argmax()))
    cache = step["past_key_values"]
    if ids[-1] == config.eos_token_id:
        break
print(tokenizer.decode(ids, skip_special_tokens=True))
```
"""
