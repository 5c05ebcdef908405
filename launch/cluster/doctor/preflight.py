"""Checks before any rank starts: asks every host and names what would fail later, with its remedy."""

import contextlib
import socket
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from transpooler.common import UserError
from transpooler.launch.cluster.doctor import probe
from transpooler.launch.cluster.environment import module_script, run_folder
from transpooler.launch.cluster.hosts import Host
from transpooler.trainer.config import Config

CONNECT_TIMEOUT_S = 10
PROBE_TIMEOUT_S = 60
SSH = ("ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}")
CHECK = "check power, cable and firewall, or leave it out: cluster.exclude=[{host}]"
SSH_MISTAKES = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "its SSH host key has changed; if that is right, `ssh-keygen -R {host}` "
    "and connect once by hand",
    "Host key verification failed": "its SSH host key is not known here; `ssh-keyscan -H {host} >> ~/.ssh/known_hosts`",
    "Permission denied": "SSH refuses this user's key; `ssh-copy-id {host}`, so that `ssh {host} true` asks nothing",
    "Could not resolve": "this name cannot be resolved; correct the hostfile or /etc/hosts",
    "Connection refused": "nothing listens on its SSH port; start sshd there",
    "Connection timed out": f"unreachable (no answer within {CONNECT_TIMEOUT_S} s); {CHECK}",
    "No route to host": f"unreachable (no route); {CHECK}",
}
AT_A_TIME = 64
"""Hosts that are asked at the same time."""

Runner = Callable[[str, str, float], tuple[str, str]]
"""(host, script, time limit in seconds) -> output of the script there, and what went wrong."""
T = TypeVar("T")


def ask_hosts(
    config: Config, hosts: Sequence[Host], run: Runner | None = None
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Ask all hosts (`run`: default over ssh) what they say of themselves (probe.facts); also why others are silent."""
    folder = run_folder(config)
    witness = folder.launch / f"witness-{uuid.uuid4().hex[:8]}"
    created = [parent for parent in witness.parents if not parent.exists()]
    try:
        witness.parent.mkdir(parents=True, exist_ok=True)
        witness.touch()
    except OSError as error:
        raise UserError(
            f"{folder.root}: cannot write the run folder: {error.strerror}; choose another run=..."
        ) from None
    try:
        script = probe_script(config, witness)
        answers = on_all(lambda host: _ask(host.name, script, run or run_on), hosts)
    finally:
        witness.unlink(missing_ok=True)
        for parent in created:  # `doctor` leaves nothing behind
            with contextlib.suppress(OSError):
                parent.rmdir()
    found = {host.name: answer for host, answer in zip(hosts, answers, strict=True) if isinstance(answer, dict)}
    silent = {host.name: answer for host, answer in zip(hosts, answers, strict=True) if isinstance(answer, str)}
    return found, silent


def probe_script(config: Config, witness: Path) -> str:
    """The script that asks a host (probe.facts); `witness` is a file that it should see."""
    arguments = {"run": run_folder(config).root, "port": config.cluster.master_port or "", "witness": witness}
    return module_script(config, probe.__name__, *(f"{key}={value}" for key, value in arguments.items()))


def unreachable(hosts: Sequence[str]) -> dict[str, str]:
    """Hosts on which `true` cannot be run over ssh, and why."""
    answers = on_all(lambda host: run_on(host, "true", CONNECT_TIMEOUT_S + 5), hosts)
    return {host: problem for host, (_, problem) in zip(hosts, answers, strict=True) if problem}


def problems(config: Config, hosts: Sequence[Host], answers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What keeps these hosts from training together, a line each that names the host and the remedy."""
    first, run = hosts[0].name, run_folder(config).root
    for key, what in _agreements(answers):
        values = {name: key(answer) for name, answer in answers.items()}
        count = Counter(values.values())
        agreed = max(values.values(), key=lambda value: (count[value], value == values[first]))
        for name, value in values.items():
            if value != agreed:
                other = next(host for host, given in values.items() if given == agreed)
                yield f"{name}: {what} is {value or 'not installed'}, but {agreed} on {other}; install the same on both"
    for host in hosts:
        answer, interface = answers[host.name], config.cluster.interface
        if interface is not None and interface not in answer["addresses"]:
            state = "has no IPv4 address" if interface in answer["interfaces"] else "does not exist"
            yield (
                f"{host.name}: network interface {interface} {state}; it has "
                f"{', '.join(answer['addresses'])} (cluster.interface)"
            )
        if answer["gpus"] and host.slots > answer["gpus"]:
            yield f"{host.name}: {host.slots} slots, but {answer['gpus']} GPUs; lower slots or processes_per_node"
        if answer["witness"] is False:
            yield (
                f"{host.name}: does not see {run} of this host; put the run folder on a shared file system (run=...)"
            )
        elif not answer["writable"]:
            yield f"{host.name}: may not write {run}; mend its permissions"
    if answers[first]["port_free"] is False:
        port = config.cluster.master_port
        yield f"{first}: port {port} is in use; choose another (cluster.master_port=...) or null for a free one"


def fill_slots(hosts: Sequence[Host], answers: Mapping[str, Mapping[str, Any]]) -> list[Host]:
    """Hosts with their final slots: one a GPU, or one, where the hostfile says none."""
    return [Host(host.name, host.slots or max(1, answers[host.name]["gpus"])) for host in hosts]


def choose_master(config: Config, first: str, answers: Mapping[str, Mapping[str, Any]]) -> tuple[str, int]:
    """Address and port of the rendezvous on the first host: as configured, else from what the host said of itself."""
    answer, cluster = answers[first], config.cluster
    port = cluster.master_port or answer["a_free_port"]
    if cluster.master_address:
        return cluster.master_address, port
    usable = {name: ip for name, ip in answer["addresses"].items() if not ip.startswith("127.")}
    if cluster.interface:
        return usable[cluster.interface], port
    if not usable or len(answers) == 1:
        return "127.0.0.1" if len(answers) == 1 else first, port
    # Hosts commonly have container bridges, so prefer the address to which the host's own name resolves.
    try:
        named = socket.gethostbyname(first)
    except OSError:
        named = ""
    return (named if named in usable.values() else next(iter(usable.values()))), port


def _agreements(answers: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[Any, str]]:
    yield (lambda answer: answer["python"].rpartition(".")[0]), "Python"
    for name in probe.PACKAGES:
        yield (lambda answer, name=name: answer["packages"][name]), name
    yield (lambda answer: answer["code"]), "the code of transpooler"


def on_all(ask: Callable[..., T], *columns: Sequence[Any]) -> list[T]:
    """`ask` called with an item of each column, many at a time; the results in order."""
    with ThreadPoolExecutor(max_workers=AT_A_TIME) as pool:
        return list(pool.map(ask, *columns))


def _ask(host: str, script: str, run_there: Runner) -> dict[str, Any] | str:
    sent = time.time()
    output, problem = run_there(host, script, PROBE_TIMEOUT_S)
    if problem:
        return problem
    if not (answers := probe.read_answers(output)):
        return f"Python does not run there: {(output.strip().splitlines() or ['no output'])[-1]}"
    answer = answers[0]
    return answer | {"clock_skew_s": max(sent - answer["time"], answer["time"] - time.time(), 0.0)}


def run_on(host: str, script: str, timeout_s: float) -> tuple[str, str]:
    """Run a script on a host over ssh: its output, and if it failed, what is wrong and what to do."""
    return _run(host, [*SSH, host, "bash", "-s"], script, timeout_s)


def run_here(host: str, script: str, timeout_s: float) -> tuple[str, str]:
    """Run a script on this machine, as `run_on` does on another."""
    return _run(host, ["bash", "-s"], script, timeout_s)


def _run(host: str, command: Sequence[str], script: str, timeout_s: float) -> tuple[str, str]:
    try:
        finished = subprocess.run(command, input=script, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise UserError("ssh is not installed here; install it (Debian: openssh-client)") from None
    except subprocess.TimeoutExpired:
        return "", f"no answer within {timeout_s:.0f} s; check the host, or leave it out: cluster.exclude=[{host}]"
    if finished.returncode == 0:
        return finished.stdout, ""
    if finished.returncode == 255:
        for sign, remedy in SSH_MISTAKES.items():
            if sign in finished.stderr:
                return "", remedy.format(host=host)
        return "", f"ssh failed: {_last(finished.stderr)}"
    if finished.returncode in (126, 127):
        return "", f"{_last(finished.stderr)}; install the same environment there or set cluster.activate"
    return "", f"{_last(finished.stderr or finished.stdout)}".removeprefix("transpooler: error: ")


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
