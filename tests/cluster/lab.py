"""Python handle of lab.sh and slurm.sh: several hosts, and a SLURM, on this machine. One at a time (file lock)."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.paths import ROOT

HERE = Path(__file__).resolve().parent
STATES = Path("/tmp")
STATE_PREFIX = "transpooler-lab-"
LOCK = STATES / "transpooler-lab.lock"
NEEDED = ("ip", "tc", "nsenter", "unshare", "sshd", "ssh", "pdsh")
SLURM_NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "setpriv")


def why_not(commands: Sequence[str]) -> str | None:
    """The reason why a lab with these commands cannot run here, or None."""
    if os.geteuid():
        return "needs root (network namespaces)"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [name for name in commands if shutil.which(name, path=path) is None]
    return f"needs {', '.join(absent)}; .ci/run installs them" if absent else None


class Lab:
    """Head `host(0)` and workers `host(1)`... . Each is a host of its own; the file system is shared."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        number = os.getpid() % 10000
        self.prefix = f"t{number}n"
        self.net = f"10.{80 + number // 250}.{number % 250}"
        self.state = STATES / f"{STATE_PREFIX}{self.prefix}"

    def host(self, number: int) -> str:
        return f"{self.prefix}{number}"

    def address(self, number: int) -> str:
        return f"{self.net}.{number + 10}"

    def up(self) -> None:
        """Boot what is not up."""
        self._script("lab.sh", "up", str(self.workers))

    def down(self) -> None:
        self._script("lab.sh", "down")
        shutil.rmtree(self.state, ignore_errors=True)

    def slurm_up(self) -> None:
        self._script("slurm.sh", "up", str(self.workers))

    def cut(self, number: int) -> None:
        self._script("lab.sh", "cut", self.host(number))

    def heal(self, number: int) -> None:
        self._script("lab.sh", "heal", self.host(number))

    def slow(self, number: int) -> None:
        """Delayed and lost packets on its cable, until `fast`."""
        self._script("lab.sh", "slow", self.host(number))

    def fast(self, number: int) -> None:
        self._script("lab.sh", "slow", self.host(number), "off")

    def crash(self, number: int) -> None:
        """Power failure: peers see silence."""
        self._script("lab.sh", "crash", self.host(number))

    def kill(self, number: int) -> None:
        """All its processes, sshd and ranks, by SIGKILL: peers see connections refused."""
        self._script("lab.sh", "kill", self.host(number))

    def start(self, number: int, command: Sequence[str], **more: str) -> subprocess.Popen[str]:
        """Start a command on a host; standard error goes to standard output. `more` is added to the environment."""
        return subprocess.Popen(
            ["bash", str(HERE / "lab.sh"), "exec", self.host(number), *command],
            env=self.environment() | more,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, number: int, command: Sequence[str], timeout_s: float = 240, **more: str) -> tuple[int, str]:
        """Exit code and output of a command on a host."""
        process = self.start(number, command, **more)
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return process.returncode, output

    def signal(self, number: int, words: Sequence[str], what: signal.Signals) -> int:
        """Signal the processes of a host whose command line has `words` one after another; how many there were."""
        wanted = "\0".join(words)
        script = (
            "import glob, os\n"
            "for path in glob.glob('/proc/[0-9]*/cmdline'):\n"
            "    try: line = open(path).read()\n"
            "    except OSError: continue\n"
            "    pid = int(path.split('/')[2])\n"
            f"    if {wanted!r} in line and pid != os.getpid(): os.kill(pid, {int(what)}); print(pid)\n"
        )
        _, output = self.run(number, [sys.executable, "-I", "-S", "-c", script])
        return len(output.split())

    def environment(self) -> dict[str, str]:
        """What commands on its hosts find."""
        # As in an activated environment: ninja, which compiled operators need, lies beside the interpreter.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        lab = {"LAB_PREFIX": self.prefix, "LAB_NET": self.net, "LAB_STATE": str(self.state)}
        return {**os.environ, "PATH": path, "HOME": "/root", "OMP_NUM_THREADS": "1", **lab}

    def _script(self, name: str, *arguments: str) -> None:
        finished = subprocess.run(
            ["bash", str(HERE / name), *arguments],
            env=self.environment(),
            stdout=subprocess.DEVNULL,  # daemons keep it open: a pipe would never end
            stderr=subprocess.PIPE if arguments[0] != "up" else None,
            text=True,
            check=False,
        )
        if finished.returncode:
            raise RuntimeError(f"{name} {' '.join(arguments)}: {finished.stderr or 'failed'}")


@contextmanager
def lab(workers: int) -> Iterator[Lab]:
    """A cluster for one test session; waits for that of another session, and removes what a killed one left."""
    with open(LOCK, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), False)
        for left in STATES.glob(f"{STATE_PREFIX}*"):  # its owner is gone, or it would hold the lock
            old = Lab(workers)
            old.prefix, old.state = left.name.removeprefix(STATE_PREFIX), left
            old.down()
        cluster = Lab(workers)
        try:
            cluster.up()
            yield cluster
        finally:
            cluster.down()


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 120) -> None:
    """Return when the condition holds; AssertionError naming `what` when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.1)
