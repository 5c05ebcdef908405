"""The model's code beside its weights, so that `trust_remote_code=True` loads an export without this package.

`transformers` copies flat files that import one another relatively, so each module of `model` becomes one file, its
imports rewritten. The compiled and Triton kernels stay behind: plain torch computes the same.
"""

import json
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from transpooler.common import read_json

ROOT = "transpooler.model"
PREFIX = "transpooler_"
NAMES = {f"{ROOT}.modeling": "modeling_transpooler", f"{ROOT}.config": "configuration_transpooler"}
"""Files with names that readers of model folders expect."""
SUMMARIZE = "transpooler.trainer.evaluation.exported"
"""Gives an encoder-decoder its method `summarize`, with what it needs of ours beside the model."""
BESIDE = (
    SUMMARIZE,
    "transpooler.trainer.evaluation.sources",
    "transpooler.data_pipeline.limits",
    "transpooler.data_pipeline.objectives.sentences",
    "transpooler.data_pipeline.text_tokens",
)
SEQ2SEQ = {
    "AutoConfig": "configuration_transpooler.TranspoolerConfig",
    "AutoModel": "modeling_transpooler.TranspoolerModel",
    "AutoModelForSeq2SeqLM": "modeling_transpooler.TranspoolerForConditionalGeneration",
    "AutoModelForSequenceClassification": "transpooler_classification.TranspoolerForSequenceClassification",
    "AutoModelForTextEncoding": "transpooler_encoder.TranspoolerEncoder",
}
"""Classes of an encoder-decoder's folder, by the Auto class that makes them."""
COMPRESSOR_ENCODER = {
    "AutoConfig": "transpooler_compressor_config.CompressorConfig",
    "AutoModel": "transpooler_compressor_encoder.CompressorEncoder",
}
"""Those of a compressor's encoder/."""
LEFT_BEHIND = (
    "transpooler.model.ops.build_lock",
    "transpooler.model.ops.cpp_extension",
    "transpooler.model.ops.__main__",
    "transpooler.model.ops.soft_topk.triton_backend",
    "transpooler.model.ops.soft_topk.triton_group_sum",
)
NO_KERNELS = '"""An export carries no compiled kernels."""\n\n\ndef extension():\n    return None\n'
BIND_SUMMARIZE = """from .transpooler_exported import summarize  # noqa: E402

TranspoolerForConditionalGeneration.summarize = summarize
"""


def write_code(folder: Path, auto_map: Mapping[str, str] = SEQ2SEQ) -> None:
    """Write the modules that the classes of `auto_map` need, and into config.json where the Auto classes find them."""
    root, package = Path(str(files(ROOT))), Path(str(files("transpooler")))
    paths = {_module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    paths |= {name: package.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in BESIDE}
    by_file = {_flat_name(name): name for name in paths}
    due, written = [by_file[name.partition(".")[0]] for name in auto_map.values()], set[str]()
    while due:
        if (name := due.pop()) in written:
            continue
        written.add(name)
        text, needed = _flatten(paths[name].read_text(encoding="utf-8"), set(paths))
        if name.endswith(".cpp_backend"):
            text, needed = NO_KERNELS, []
        due += needed
        for line in _registrations(_flat_name(name), auto_map):
            text += f"\n\n{line}"
        if _flat_name(name) == "modeling_transpooler":
            text += f"\n\n{BIND_SUMMARIZE}"
            due.append(SUMMARIZE)
        (folder / f"{_flat_name(name)}.py").write_text(text, encoding="utf-8")
    config = read_json(folder / "config.json") | {"auto_map": dict(auto_map)}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _registrations(file: str, auto_map: Mapping[str, str]) -> Iterator[str]:
    """Each class names the Auto class that makes it: whoever saves the model again then saves this code with it."""
    for auto_class, name in auto_map.items():
        if name.startswith(f"{file}."):
            yield f"{name.removeprefix(f'{file}.')}.register_for_auto_class({auto_class!r})\n"


def _module_name(path: Path, root: Path) -> str:
    parts = [ROOT, *path.relative_to(root).with_suffix("").parts]
    return ".".join(part for part in parts if part != "__init__")


def _flat_name(module: str) -> str:
    if module in BESIDE:
        return PREFIX + module.rpartition(".")[2]
    return NAMES.get(module) or PREFIX + module.removeprefix(f"{ROOT}.").replace(".", "_")


def _flatten(text: str, modules: set[str]) -> tuple[str, list[str]]:
    """A module's text with its imports of `model` made flat and relative, and operator names of its own; the modules
    that it imports.
    """
    needed = []

    def rewrite(match: re.Match) -> str:
        indent, module, names = match.groups()
        lines = []
        for name in re.findall(r"\w+", names):
            inner = f"{module}.{name}"
            if inner in LEFT_BEHIND:
                lines.append(f"{indent}{name} = None")
            elif inner in modules:
                needed.append(inner)
                # transformers finds files by lines such as the first; it overlooks the second.
                lines.append(f"{indent}from .{_flat_name(inner)} import __name__ as _  # noqa: F401")
                lines.append(f"{indent}from . import {_flat_name(inner)} as {name}")
            else:
                needed.append(module)
                lines.append(f"{indent}from .{_flat_name(module)} import {name}")
        return "\n".join(lines)

    text = re.sub(r"^if TYPE_CHECKING:\n(?: .*\n|\n(?= ))+", "", text, flags=re.MULTILINE)
    line = r"^( *)from (transpooler\.[\w.]+) import (\([^)]*\)|[\w, ]+)$"
    text = re.sub(line, rewrite, text, flags=re.MULTILINE)
    if '"transpooler::' not in text:
        return text, needed
    # Two exports in one process are two modules, which must not register the same operator.
    own = text.replace('"transpooler::', 'f"transpooler_{zlib.crc32(__name__.encode())}::')
    return own.replace("import torch\n", "import zlib\n\nimport torch\n", 1), needed
