"""`transpooler doctor` on real hosts: the slow one is named, the absent one is fatal, the fixes are there."""

import sys

import pytest

from tests.cluster.lab import Lab
from tests.cluster.runs import Runs

pytestmark = pytest.mark.slow
DOCTOR = [sys.executable, "-m", "transpooler", "doctor", "--quiet", "--hostfile"]


def test_doctor_names_the_slow_host(cluster: Lab, runs: Runs) -> None:
    path = runs.folder / "three-hosts"
    path.write_text("".join(f"{cluster.host(number)} slots=1\n" for number in range(3)))
    cluster.slow(2)
    try:
        code, table = cluster.run(0, [*DOCTOR, str(path)])
    finally:
        cluster.fast(2)
    assert code == 0, table
    (slow,) = [line for line in table.splitlines() if "slow host" in line]
    assert cluster.host(2) in slow
    assert "ms to every other host" in slow or "MiB/s to any other host" in slow
    checks = ("reachable", "versions", "clock", "disk", "shared memory", "open files", "compiler", "operators", "ports")
    for check in checks:
        assert sum(f"  {check}  " in line for line in table.splitlines()) == 3, (check, table)
    assert "all-reduce" in table
    assert "over 3 hosts (gloo)" in table


def test_doctor_ends_with_2_when_training_would_fail(cluster: Lab, runs: Runs) -> None:
    path = runs.folder / "bad-hosts-of-doctor"
    path.write_text(f"{cluster.host(1)} slots=1\nnobody slots=1\n")
    code, output = cluster.run(0, [*DOCTOR, str(path), "cluster.interface=ib7"])
    assert code == 2, output
    assert "fix: correct the hostfile or /etc/hosts" in output
    errors = [
        line.removeprefix("transpooler: error: ")
        for line in output.splitlines()
        if line.startswith("transpooler: error")
    ]
    assert errors[0].startswith("nobody: reachable: this name cannot be resolved")
    assert errors[1].startswith(f"{cluster.host(1)}: together: network interface ib7 does not exist")
