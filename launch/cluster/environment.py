"""The working directory, environment and Python that a rank starts with, rendered into one script.

Engines differ in which variables they pass on (and some cut values at a comma), so none is left to them: each starts
the same script, RUN/launch/attempt-N/rank.sh, once per rank.
"""

import fnmatch
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from transpooler.common import local_path
from transpooler.trainer.config import Config
from transpooler.trainer.run_folder import RunFolder


def working_directory(config: Config) -> Path:
    """The folder in which ranks start."""
    return Path(config.cluster.working_directory or Path.cwd()).absolute()


def run_folder(config: Config) -> RunFolder:
    """The run folder as ranks see it."""
    return RunFolder(working_directory(config) / local_path(config.run))


def rank_variables(config: Config, here: Mapping[str, str]) -> dict[str, str]:
    """Variables of every rank: those of `here` that the allow-list names, the interface, then the configuration's."""
    cluster = config.cluster
    variables = {
        name: value
        for name, value in here.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in cluster.pass_environment) and name.isidentifier()
    }
    variables["PYTHONSAFEPATH"] = "1"  # what lies in the working directory is not imported
    if cluster.activate is None:
        path = variables.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(os.pathsep)
        variables["PATH"] = os.pathsep.join(dict.fromkeys([str(Path(sys.executable).parent), *path]))
    if cluster.interface is not None:
        variables |= {"GLOO_SOCKET_IFNAME": cluster.interface, "NCCL_SOCKET_IFNAME": cluster.interface}
    return variables | {key: str(value) for key, value in cluster.environment.items()}


def prologue(config: Config, variables: Mapping[str, str]) -> list[str]:
    """Shell lines that give a process on any host the ranks' folder and environment."""
    folder = shlex.quote(str(working_directory(config)))
    message = shlex.quote(f"no folder {working_directory(config)}; share it or set cluster.working_directory")
    return [
        f'cd {folder} 2>/dev/null || {{ echo "transpooler: error: $(hostname): "{message} >&2; exit 2; }}',
        *(f"export {key}={shlex.quote(value)}" for key, value in sorted(variables.items())),
        *([config.cluster.activate] if config.cluster.activate else []),
    ]


def python(config: Config) -> str:
    """The interpreter on every host: this one's path, or the `python` that `cluster.activate` puts on PATH."""
    return "python" if config.cluster.activate else sys.executable


def script(config: Config, variables: Mapping[str, str], command: Sequence[str], comment: str) -> str:
    """A bash script: the prologue, then `command`, which replaces the shell."""
    lines = ["#!/usr/bin/env bash", f"# {comment}", *prologue(config, variables), f"exec {shlex.join(command)}"]
    return "\n".join(lines) + "\n"


def module_script(config: Config, module: str, *arguments: str, **variables: str) -> str:
    """A bash script that runs a module of ours on any host as ranks run, with `variables` added to theirs."""
    everything = rank_variables(config, os.environ) | variables
    return script(config, everything, [python(config), "-m", module, *arguments], f"Runs {module}.")
