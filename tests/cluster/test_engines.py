"""Two real hosts train what two local processes train, to the bit, whichever engine starts them; and bad input."""

import shutil
import signal
import sys
from importlib.metadata import files, version
from pathlib import Path

import pytest

from tests.cluster.lab import Lab
from tests.cluster.runs import Runs

pytestmark = pytest.mark.slow
PROGRAMS = {"ssh": "pdsh", "torchrun": "pdsh", "openmpi": "mpirun.openmpi", "mpich": "mpiexec.hydra"}


@pytest.mark.parametrize("target", PROGRAMS)
def test_two_hosts_equal_two_local_processes(cluster: Lab, runs: Runs, hostfile: str, target: str) -> None:
    if shutil.which(PROGRAMS[target]) is None:
        pytest.skip(f"needs {PROGRAMS[target]}; .ci/run installs it")
    command = runs.command(target, target, hostfile, "cluster.interface=eth0", "cluster.max_restarts=0")
    code, output = cluster.run(0, command)
    assert code == 0, output[-3000:]
    runs.assert_same(target)
    (start, end, finish) = runs.events(target)
    assert (start["hosts"], start["ranks"]) == ([cluster.host(1), cluster.host(2)], 2)
    assert (end["ending"], finish["event"], finish["exit_code"]) == ("done", "finish", 0)
    logs = runs.folder / target / "logs"
    for rank in (0, 1):
        assert f"attempt-1 on {cluster.host(rank + 1)}" in (logs / f"rank-{rank}.log").read_text()
    assert f"[rank 0 {cluster.host(1)}] " in (logs / "all.log").read_text()
    assert f"[rank 0 {cluster.host(1)}] " in output


def test_plain_deepspeed_starts_the_same_ranks(cluster: Lab, runs: Runs, hostfile: str) -> None:
    path, passed_on = hostfile.partition("=")[2], runs.folder / "deepspeed_env"
    names = ("PATH", "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR")
    values = {name: value for name, value in cluster.environment().items() if name in names}
    passed_on.write_text("".join(f"{name}={value}\n" for name, value in values.items()))  # as ~/.deepspeed_env would
    launcher = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--hostfile",
        path,
        "--master_addr",
        cluster.address(1),
    ]
    command = [*launcher, "--module", "transpooler.launch.train", *runs.arguments("plain_deepspeed")]
    code, output = cluster.run(0, command, DS_ENV_FILE=str(passed_on))
    assert code == 0, output[-3000:]
    runs.assert_same("plain_deepspeed")


def test_mistakes_are_named_before_any_rank_starts(cluster: Lab, runs: Runs, hostfile: str) -> None:
    good = hostfile.partition("=")[2]

    def refused(*settings: str, hosts: str | None = None, target: str = "ssh", path: str | None = None) -> list[str]:
        written = runs.folder / "bad-hosts"
        written.write_text(hosts or Path(good).read_text())
        command = runs.command(target, "bad", f"cluster.hostfile={written}", *settings)
        code, output = cluster.run(0, ["env", f"PATH={path}", *command] if path else command)
        assert code == 2, output
        lines = output.splitlines()
        assert all(line.startswith("transpooler: error: ") for line in lines), output
        assert not list((runs.folder / "bad" / "launch").glob("attempt-*/rank-*"))
        return [line.removeprefix("transpooler: error: ") for line in lines]

    first, second = cluster.host(1), cluster.host(2)
    (line,) = refused(hosts=f"{first}\n{first}\n")
    assert f"bad-hosts:2: host {first} is there twice" in line
    (line,) = refused(hosts=f"{first}\nnobody\n")
    assert line.startswith("nobody: this name cannot be resolved")
    (line,) = refused("cluster.interface=ib7")[:1]
    assert line.startswith(f"{first}: network interface ib7 does not exist; it has lo, eth0")
    occupy = "import socket, time; server = socket.create_server(('', 23456)); print('up', flush=True); time.sleep(300)"
    listener = cluster.start(1, ["python3", "-c", occupy])
    try:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "up\n"
        (line,) = refused("cluster.master_port=23456")
    finally:
        cluster.signal(1, [occupy], signal.SIGKILL)
        listener.wait(10)
    assert line.startswith(f"{first}: port 23456 is in use")
    bare = runs.folder / "bare"
    bare.mkdir()
    (bare / "ssh").symlink_to(str(shutil.which("ssh")))
    for target, program in (("ssh", "pdsh"), ("torchrun", "pdsh"), ("openmpi", "Open MPI"), ("mpich", "HYDRA")):
        (line,) = refused(target=target, path=str(bare))
        assert program in line
        assert "install it" in line
    metadata = Path(next(str(file.locate()) for file in files("transformers") or () if file.name == "METADATA"))
    other = runs.folder / "METADATA"
    other.write_text(metadata.read_text().replace(f"Version: {version('transformers')}", "Version: 4.0.0", 1))
    cluster.run(2, ["mount", "--bind", str(other), str(metadata)])  # on this host alone
    try:
        (line,) = refused()
    finally:
        cluster.run(2, ["umount", str(metadata)])
    assert line.startswith(f"{second}: transformers is 4.0.0, but {version('transformers')} on {first}")
    cluster.cut(2)
    try:
        (line,) = refused()
    finally:
        cluster.heal(2)
    assert line.startswith(f"{second}: unreachable (no ")
    known = cluster.state / "ssh" / "known_hosts"
    before = known.read_text()
    known.write_text("")
    try:
        lines = refused()
    finally:
        known.write_text(before)
    assert [line.partition(":")[0] for line in lines] == [first, second]
    assert all("its SSH host key is not known here; `ssh-keyscan" in line for line in lines)
