"""Sources name the place of a planted fact: a study is trained as users train it, and its models are asked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.paths import ROOT
from transpooler.benchmarks.quality.source_recall import measure

STEPS, SHARED_STEPS, NUM_DOCUMENTS = 550, 400, 60


@pytest.mark.slow  # two to four minutes
def test_the_fact_is_among_the_first_two_sources_of_its_sentence(tmp_path: Path) -> None:
    study = yaml.safe_load((ROOT / "configs" / "studies" / "needles_in_sentences.yaml").read_text())
    study["budget"]["steps"] = STEPS
    study["configs"] = [str(ROOT / "configs" / "studies" / name) for name in study["configs"]]
    for arm in study["arms"].values():
        arm["start"]["share"] = SHARED_STEPS / STEPS
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "transpooler", "bench", "quality", str(tmp_path / "study.yaml")]
    command += ["--arms", "transpooler,random", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "corpus" / "test.jsonl").open()][:NUM_DOCUMENTS]
    ours, random = (
        measure(tmp_path / "out" / "runs" / f"{arm}-seed0" / "export", rows) for arm in ("transpooler", "random")
    )
    print(f"transpooler {ours}, random {random}")
    assert ours["sentences"] >= 0.95 * 4 * NUM_DOCUMENTS
    assert ours["first two"] >= 0.95
    assert random["first two"] <= ours["first two"] - 0.2
    assert ours["by chance"] <= 0.12
