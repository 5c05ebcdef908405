"""The model's code beside its weights, so that `trust_remote_code=True` loads an export without this package.

`transformers` copies flat files that import one another relatively, so each module of `model` becomes one file, its
imports rewritten. The compiled and Triton kernels stay behind: plain torch computes the same.
"""

import re
from importlib.resources import files
from pathlib import Path

ROOT = "transpooler.model"
PREFIX = "transpooler_"
ENTRY = "modeling_transpooler"
CONFIG = "configuration_transpooler"
AUTO_MAP = {
    "AutoConfig": f"{CONFIG}.TranspoolerConfig",
    "AutoModel": f"{ENTRY}.TranspoolerModel",
    "AutoModelForSeq2SeqLM": f"{ENTRY}.TranspoolerForConditionalGeneration",
    "AutoModelForSequenceClassification": f"{ENTRY}.TranspoolerForSequenceClassification",
    "AutoModelForTextEncoding": f"{ENTRY}.TranspoolerEncoder",
}
LEFT_BEHIND = (
    "transpooler.model.ops.build_lock",
    "transpooler.model.ops.soft_topk.__main__",
    "transpooler.model.ops.soft_topk.triton_backend",
    "transpooler.model.ops.soft_topk.triton_group_sum",
)
NO_KERNELS = '"""An export carries no compiled kernels."""\n\n\ndef extension():\n    return None\n'
ENTRIES = {
    ENTRY: (
        "transpooler.model.modeling",
        ", ".join(name.rpartition(".")[2] for name in AUTO_MAP.values() if ENTRY in name),
    ),
    CONFIG: ("transpooler.model.config", "TranspoolerConfig"),
}


def write_code(folder: Path) -> None:
    """Write the files into an export."""
    root = Path(str(files(ROOT)))
    paths = {_module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    kept = {name: path for name, path in paths.items() if name not in (*LEFT_BEHIND, ROOT, f"{ROOT}.ops")}
    for name, path in kept.items():
        text = NO_KERNELS if name.endswith(".cpp_backend") else _flatten(path.read_text(encoding="utf-8"), set(paths))
        (folder / f"{_flat_name(name)}.py").write_text(text, encoding="utf-8")
    # transformers finds files by lines such as these; not all of our imports look like them.
    needed = "".join(f"from .{_flat_name(name)} import __name__ as _  # noqa: F401\n" for name in kept)
    for entry, (module, names) in ENTRIES.items():
        about = '"""Entry point for transformers; made by transpooler."""'
        text = f"{about}\n\nfrom .{_flat_name(module)} import {names}  # noqa: F401\n"
        (folder / f"{entry}.py").write_text(text + needed, encoding="utf-8")


def _module_name(path: Path, root: Path) -> str:
    parts = [ROOT, *path.relative_to(root).with_suffix("").parts]
    return ".".join(part for part in parts if part != "__init__")


def _flat_name(module: str) -> str:
    return PREFIX + module.removeprefix(f"{ROOT}.").replace(".", "_")


def _flatten(text: str, modules: set[str]) -> str:
    """A module's text with its imports of `model` made flat and relative, and operator names of its own."""

    def rewrite(match: re.Match) -> str:
        indent, module, names = match.groups()
        lines = []
        for name in re.findall(r"\w+", names):
            inner = f"{module}.{name}"
            if inner in LEFT_BEHIND:
                lines.append(f"{indent}{name} = None")
            elif inner in modules:
                lines.append(f"{indent}from . import {_flat_name(inner)} as {name}")
            else:
                lines.append(f"{indent}from .{_flat_name(module)} import {name}")
        return "\n".join(lines)

    line = rf"^( *)from ({re.escape(ROOT)}[\w.]*) import (\([^)]*\)|[\w, ]+)$"
    text = re.sub(line, rewrite, text, flags=re.MULTILINE)
    return text.replace('"transpooler::', '"transpooler_export::')
