"""The oldest and the newest versions of the libraries that move, each in a folder of its own beside the environment.

`make test-versions` runs the tests that would notice for all of them; tests/integration/test_library_versions.py runs a
few of them for transformers alone. A folder is made once, with pip, and takes precedence over what is installed.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.paths import ROOT

GENERATION = "tests/integration/test_model_generate.py"
CACHES = (f"{GENERATION}::test_with_and_without_cache_the_same", f"{GENERATION}::test_every_kind_of_cache")
MODELS = (GENERATION, "tests/integration/test_model_transformers.py", "tests/integration/test_trainer_export.py")
SHARDS = (
    "tests/unit/data_pipeline/sources",
    "tests/unit/data_pipeline/shards",
    "tests/integration/test_data_clients.py",
)


class Version(NamedTuple):
    """What to install, and the tests that would notice a change."""

    packages: tuple[str, ...]
    tests: tuple[str, ...]


VERSIONS = {
    "transformers-5.17": Version(("transformers==5.17.0", "huggingface-hub==1.33.0"), MODELS),
    "transformers-5.24": Version(("transformers==5.24.0",), MODELS),
    "datasets-5.0": Version(("datasets==5.0.0",), SHARDS),
}
"""The ends of the ranges in common/versions.py, where they differ from constraints.txt. deepspeed and webdataset have
one release in theirs; torches other than the installed one are gigabytes, and are tried on machines with a GPU."""


def run(name: str, folder: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Install the version into `folder`, unless it is there, and run pytest with it; output is captured."""
    target = folder / name
    if not (target / ".complete").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(target)]
        done = subprocess.run([*pip, *VERSIONS[name].packages], capture_output=True, text=True)
        if done.returncode:
            return done
        (target / ".complete").touch()
    environment = os.environ | {"PYTHONPATH": str(target), "DS_BUILD_OPS": "0"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def main() -> int:
    """Run everything, a line each; returns the number of versions that failed."""
    failed = 0
    for name, version in VERSIONS.items():
        done = run(name, ROOT / "build" / "versions", version.tests)
        failed += done.returncode != 0
        print(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}", flush=True)
        if done.returncode:
            print((done.stdout + done.stderr)[-4000:], flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
