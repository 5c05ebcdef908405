"""The checks of `transpooler doctor`: asks every host, builds the compiled operators, measures the network."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transpooler.common import UserError, align, say
from transpooler.launch.cluster.doctor import ports, preflight
from transpooler.launch.cluster.doctor.health import FAILS, OK, WARNING, Row, judge_host, judge_network
from transpooler.launch.cluster.doctor.preflight import Runner
from transpooler.launch.cluster.doctor.probe import read_answers
from transpooler.launch.cluster.environment import module_script
from transpooler.launch.cluster.hosts import Host, choose_hosts
from transpooler.trainer.config import Config
from transpooler.trainer.engine.optimizer import operator_of

BUILD_TIMEOUT_S = 900.0
NETWORK_TIMEOUT_S = 300.0
NETWORK = "transpooler.launch.cluster.doctor.network"
"""Not imported here, because it imports torch."""


def examine(config: Config) -> list[Row]:
    """All findings. The network is measured only if no earlier check failed."""
    hosts = choose_hosts(config.cluster) if config.cluster.hostfile else [Host("localhost", 0)]
    run = preflight.run_on if config.cluster.hostfile else preflight.run_here
    say(f"doctor: asks {len(hosts)} host{'s'[: len(hosts) > 1]}")
    answers, silent = preflight.ask_hosts(config, hosts, run)
    rows = [Row(name, "reachable", FAILS, *_split(problem)) for name, problem in silent.items()]
    for host in hosts:
        if host.name in answers:
            rows += [Row(host.name, "reachable", OK, "runs our Python"), *judge_host(host.name, answers[host.name])]
    alive = [host for host in hosts if host.name in answers]
    if alive:
        problems = [line.partition(": ") for line in preflight.problems(config, alive, answers)]
        rows += [Row(host, "together", FAILS, *_split(problem)) for host, _, problem in problems]
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


def _on_all(hosts: Sequence[Host], scripts: Sequence[str], run: Runner, timeout_s: float) -> list[tuple[str, str]]:
    return preflight.on_all(lambda host, script: run(host.name, script, timeout_s), hosts, scripts)


def _build(config: Config, hosts: Sequence[Host], run: Runner) -> Iterator[Row]:
    """Build the operators on every host, so that ranks find them; hosts that share the folder wait for one another."""
    scripts = {"operators": module_script(config, "transpooler.model.ops")}
    if operator := operator_of(config.optimizer, config.engine):
        scripts[operator] = module_script(config, "transpooler.trainer.engine.compiled_ops", operator)
    for name, script in scripts.items():
        answers = _on_all(hosts, [script] * len(hosts), run, BUILD_TIMEOUT_S)
        for host, (output, problem) in zip(hosts, answers, strict=True):
            said = (output.strip().splitlines() or ["built"])[-1]
            fix = "install g++ and ninja, and set TORCH_EXTENSIONS_DIR to a folder that ranks may write"
            yield Row(host.name, name, FAILS if problem else OK, problem or said, fix if problem else "")


def _measure_network(config: Config, hosts: Sequence[Host], answers: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    """Check the ports both ways, then measure pairs of hosts and the all-reduce."""
    names = [host.name for host in hosts]
    addresses = [preflight.choose_master(config, name, answers)[0] for name in names]
    free = [answers[name]["a_free_port"] for name in names]
    scripts = []
    for number, port in enumerate(free):
        others = [f"{addresses[other]}:{free[other]}" for other in range(len(hosts)) if other != number]
        scripts.append(module_script(config, ports.__name__, str(port), *others))
    blocked = False
    for host, (output, problem) in zip(
        hosts, _on_all(hosts, scripts, preflight.run_on, NETWORK_TIMEOUT_S), strict=True
    ):
        unreached = next(iter(read_answers(output)), None)
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
    master = {"MASTER_ADDR": addresses[0], "MASTER_PORT": str(preflight.choose_master(config, names[0], answers)[1])}
    master |= {"WORLD_SIZE": str(len(hosts)), "LOCAL_RANK": "0"}
    scripts = [module_script(config, NETWORK, RANK=str(rank), **master) for rank in range(len(hosts))]
    results = _on_all(hosts, scripts, preflight.run_on, NETWORK_TIMEOUT_S)
    measured = read_answers(results[0][0])
    if not measured:
        for host, (_, problem) in zip(hosts, results, strict=True):
            if problem:
                yield Row(
                    host.name, "all-reduce", FAILS, problem, "set cluster.interface to the network that hosts share"
                )
        return
    yield from judge_network(names, measured[0])


def _split(problem: str) -> tuple[str, str]:
    """(finding, remedy) of a line `finding; remedy`."""
    finding, _, remedy = problem.partition("; ")
    return finding, remedy


def require_health(rows: Sequence[Row]) -> None:
    """UserError that names every check that failed."""
    if failing := [f"{row.host}: {row.check}: {row.finding}" for row in rows if row.state == FAILS]:
        raise UserError(*failing)
