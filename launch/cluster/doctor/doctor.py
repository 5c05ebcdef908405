"""The checks of `transpooler doctor`: asks every host, builds the compiled operators, measures the network."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transpooler.common.errors import UserError
from transpooler.common.log import say
from transpooler.common.tables import align
from transpooler.launch.cluster.doctor import network, ports, preflight
from transpooler.launch.cluster.doctor.health import FAILS, OK, WARNING, Row, host_rows, network_rows
from transpooler.launch.cluster.doctor.preflight import Runner
from transpooler.launch.cluster.environment import prologue, python, rank_variables
from transpooler.launch.cluster.hosts import Host, chosen_hosts
from transpooler.trainer.config import Config
from transpooler.trainer.engine.optimizer import operator_of

BUILD_TIMEOUT_S = 900.0
NETWORK_TIMEOUT_S = 300.0
OPERATORS = ("-m", "transpooler.model.ops.soft_topk")


def examine(config: Config) -> list[Row]:
    """All findings. The network is measured only if no earlier check failed."""
    hosts = chosen_hosts(config.cluster) if config.cluster.hostfile else [Host("localhost", 0)]
    run = _local if config.cluster.hostfile is None else preflight.run_on
    say(f"doctor: asks {len(hosts)} host{'s'[: len(hosts) > 1]}")
    answers, silent = preflight.ask_hosts(config, hosts, run)
    rows = [Row(name, "reachable", FAILS, *_split(problem)) for name, problem in silent.items()]
    for host in hosts:
        if host.name in answers:
            rows += [Row(host.name, "reachable", OK, "runs our Python"), *host_rows(host.name, answers[host.name])]
    alive = [host for host in hosts if host.name in answers]
    if alive:
        problems = [line.partition(": ") for line in preflight.problems(config, alive, answers)]
        rows += [Row(line.partition(": ")[0], "together", FAILS, *_split(line.partition(": ")[2])) for line in problems]
        say("doctor: builds operators where they are not built yet")
        rows += _build(config, alive, run)
    if len(alive) > 1 and not any(row.state == FAILS for row in rows):
        say("doctor: measures the network")
        rows += _measure_network(config, alive, answers)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The findings in aligned columns, each fix below its problem; problems come last, where they are seen."""
    order = {OK: 0, WARNING: 1, FAILS: 2}
    lines = []
    for row in sorted(rows, key=lambda row: order[row.state]):
        lines.append((row.state, row.host, row.check, row.finding))
        if row.fix:
            lines.append(("", "", "", f"fix: {row.fix}"))
    return "\n".join(align(lines))


def _local(host: str, script: str, timeout_s: float) -> tuple[str, str]:
    return preflight.run_command(host, ("bash", "-s"), script, timeout_s)


def _on_all(hosts: Sequence[Host], scripts: Sequence[str], run: Runner, timeout_s: float) -> list[tuple[str, str]]:
    return preflight.on_all(lambda host, script: run(host.name, script, timeout_s), hosts, scripts)


def _command(config: Config, arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    everything = rank_variables(config, os.environ) | dict(variables or {})
    return "\n".join([*prologue(config, everything), shlex.join([python(config), *arguments])])


def _build(config: Config, hosts: Sequence[Host], run: Runner) -> Iterator[Row]:
    """Build the operators on every host, so that ranks find them; hosts that share the folder wait for one another."""
    wanted: list[tuple[str, tuple[str, ...]]] = [("operators", OPERATORS)]
    if operator := operator_of(config.optimizer, config.engine):
        wanted.append((operator, ("-m", "transpooler.trainer.engine.compiled_ops", operator)))
    for name, arguments in wanted:
        answers = _on_all(hosts, [_command(config, arguments)] * len(hosts), run, BUILD_TIMEOUT_S)
        for host, (output, problem) in zip(hosts, answers, strict=True):
            said = (output.strip().splitlines() or ["built"])[-1]
            fix = "install g++ and ninja, and set TORCH_EXTENSIONS_DIR to a folder that ranks may write"
            yield Row(host.name, name, FAILS if problem else OK, problem or said, fix if problem else "")


def _measure_network(config: Config, hosts: Sequence[Host], answers: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    """Check the ports both ways, then measure pairs of hosts and the all-reduce."""
    names = [host.name for host in hosts]
    addresses = [preflight.master_of(config, name, answers)[0] for name in names]
    free = [answers[name]["a_free_port"] for name in names]
    scripts = []
    for number, port in enumerate(free):
        others = [f"{addresses[other]}:{free[other]}" for other in range(len(hosts)) if other != number]
        scripts.append(_command(config, ["-m", "transpooler.launch.cluster.doctor.ports", str(port), *others]))
    blocked = False
    for host, (output, problem) in zip(
        hosts, _on_all(hosts, scripts, preflight.run_on, NETWORK_TIMEOUT_S), strict=True
    ):
        unreached = _read_marked(output, ports.MARK)
        for address, why in (unreached or {}).items():
            blocked = True
            yield Row(
                host.name, "ports", FAILS, f"cannot reach {address}: {why}", "open the hosts' firewalls to one another"
            )
        if unreached is None:
            blocked = True
            yield Row(host.name, "ports", FAILS, problem or "no answer")
        elif not unreached:
            yield Row(host.name, "ports", OK, "reaches every other host")
    if blocked:
        return
    master = {"MASTER_ADDR": addresses[0], "MASTER_PORT": str(preflight.master_of(config, names[0], answers)[1])}
    variables = [
        {"RANK": str(rank), "WORLD_SIZE": str(len(hosts)), "LOCAL_RANK": "0", **master} for rank in range(len(hosts))
    ]
    scripts = [_command(config, ["-m", "transpooler.launch.cluster.doctor.network"], each) for each in variables]
    results = _on_all(hosts, scripts, preflight.run_on, NETWORK_TIMEOUT_S)
    measured = _read_marked(results[0][0], network.MARK)
    if measured is None:
        for host, (_, problem) in zip(hosts, results, strict=True):
            if problem:
                yield Row(
                    host.name, "all-reduce", FAILS, problem, "set cluster.interface to the network that hosts share"
                )
        return
    yield from network_rows(names, measured)


def _read_marked(output: str, mark: str) -> Any:
    line = next((line for line in output.splitlines() if line.startswith(mark)), None)
    return None if line is None else json.loads(line.removeprefix(mark))


def _split(problem: str) -> tuple[str, str]:
    """(finding, remedy) of a line `finding; remedy`."""
    finding, _, remedy = problem.partition("; ")
    return finding, remedy


def require_health(rows: Sequence[Row]) -> None:
    """UserError that names every check that failed."""
    failing = [row for row in rows if row.state == FAILS]
    if failing:
        raise UserError("\n".join(f"{row.host}: {row.check}: {row.finding}" for row in failing))
