"""C++ kernels for CPUs, compiled once per machine type and torch version, from sources that stand in a package."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from transpooler.model.ops.build_lock import lock_build

FLAGS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"),
    "AVX2": ("-mavx2", "-mfma"),
}
"""By instruction set, not -march=native: machines of different types may share the disk of the compiled file."""
OPTIONAL_FLAGS = {
    "-mavx512vnni": torch.cpu._is_vnni_supported,
    "-mavx512bf16": torch.cpu._is_avx512_bf16_supported,
}
"""Instructions that only some machines with AVX512 have."""
FAILURES = (OSError, RuntimeError, ImportError, subprocess.SubprocessError)
"""What `load_extension` raises where there is no compiler, or no ninja."""


def load_extension(source: Path, headers: Sequence[Path], prefix: str = "transpooler") -> ModuleType:
    """Build the extension of `source` if needed, and import it; raises one of FAILURES."""
    from torch.utils.cpp_extension import load

    capability = torch.backends.cpu.get_cpu_capability()
    flags = ["-O3", "-fopenmp", *FLAGS.get(capability, ())]
    if capability == "AVX512":
        flags += [flag for flag, is_there in OPTIONAL_FLAGS.items() if is_there()]
    identity = "".join([*(file.read_text() for file in (source, *headers)), torch.__version__, *flags])
    name = f"{prefix}_{capability.lower()}_{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    with lock_build(name) as folder:
        # Built from a copy: ninja knows files by path and time, and would compile anew for every checkout.
        for file in (source, *headers):
            if not (folder / file.name).is_file():
                shutil.copyfile(file, folder / f"{file.name}.part")
                os.replace(folder / f"{file.name}.part", folder / file.name)
        with _prefer_own_ninja():
            return load(name, [str(folder / source.name)], extra_cflags=flags, build_directory=str(folder))


@contextmanager
def _prefer_own_ninja() -> Iterator[None]:
    """Put the `ninja` package's program first on PATH: there may be none, or another, whose log forces a rebuild."""
    import ninja

    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(ninja.BIN_DIR), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before
