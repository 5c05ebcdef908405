"""One attempt of a job as data: what is asked of a target, and its answer. --dry-run prints what would be started."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transpooler.common import atomic_write
from transpooler.launch.cluster.hosts import Host, num_ranks
from transpooler.trainer.config import Config


@dataclass(frozen=True, kw_only=True)
class AttemptRequest:
    """What a target needs to know to plan one attempt."""

    config: Config
    settings: tuple[str, ...]
    """Arguments of each rank: configuration files and key=value."""
    hosts: tuple[Host, ...]
    master: tuple[str, int] | None
    """Address and port of the rendezvous; None where no host was asked, or where the ranks find it out."""
    folder: Path
    """RUN/launch/attempt-<N>: receives the plan's files and the ranks' signs of life."""
    variables: Mapping[str, str]
    """Environment of the ranks."""

    @property
    def rank_script(self) -> Path:
        """What the engine starts once per rank."""
        return self.folder / "rank.sh"


@dataclass(frozen=True, kw_only=True)
class AttemptPlan:
    """One attempt: a command that starts the engine, and the files that it needs."""

    target: str
    """Its name, for people."""
    hosts: tuple[Host, ...]
    command: tuple[str, ...]
    files: Mapping[Path, str]
    """Text of each file; scripts (.sh) are made executable."""
    variables: Mapping[str, str]
    directory: Path
    engine_variables: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of the engine alone."""
    ends_gently: bool = True
    """Whether SIGTERM may be sent to the engine before SIGKILL."""

    def write(self) -> None:
        """Write the files."""
        for path, text in self.files.items():
            with atomic_write(path) as file:
                file.write(text)
                if path.suffix == ".sh":
                    os.fchmod(file.fileno(), 0o755)

    def describe(self) -> str:
        """For people: hosts, command, environment, files."""
        lines = [f"target     {self.target}", f"ranks      {num_ranks(self.hosts)}"]
        lines += [f"host       {host.name} slots={host.slots or 'one a GPU'}" for host in self.hosts]
        variables = [f"{key}={shlex.quote(value)}" for key, value in self.engine_variables.items()]
        lines += [f"directory  {self.directory}", f"command    {' '.join([*variables, shlex.join(self.command)])}"]
        lines += [f"env        {key}={value}" for key, value in sorted(self.variables.items())]
        for path, text in self.files.items():
            lines += [f"file       {path}", *(f"    {line}" for line in text.splitlines())]
        return "\n".join(lines)
