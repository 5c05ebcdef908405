"""Restarts a job until it is done: after a crash, a hang or a lost host, never after a user's mistake.

Where training continues is not decided here: every start of the ranks finds the newest valid checkpoint itself.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from transpooler.common import INTERRUPTED, PREEMPTED, STOP_SIGNALS, USER_ERROR, UserError, handle_signals, say
from transpooler.launch.cluster.attempt import Attempt, Outcome
from transpooler.launch.cluster.attempt_plan import AttemptPlan, AttemptRequest
from transpooler.launch.cluster.decisions import GIVEN_UP, Decision, History, blames_peer, decide
from transpooler.launch.cluster.doctor import preflight
from transpooler.launch.cluster.environment import rank_variables, run_folder, working_directory
from transpooler.launch.cluster.hosts import num_ranks
from transpooler.launch.cluster.targets.base import Answers, Target
from transpooler.trainer.config import Config
from transpooler.trainer.guards.run_lock import hold


class Supervisor:
    """Runs one job to its end (`run`), or says what its first attempt would be (`describe`)."""

    def __init__(self, target: Target, config: Config, settings: Sequence[str]) -> None:
        self.target, self.config, self.settings = target, config, tuple(settings)
        self.hosts, self.folder = target.hosts(config), run_folder(config)
        self.history = History(step=self._newest_step())
        self.stop, self.stop_signal = threading.Event(), ""
        self.attempt: Attempt | None = None

    def run(self) -> int:
        """Make attempts until the run is complete or a restart would not help; returns the exit code.

        UserError for what is wrong before the first attempt.
        """
        if not (folder := working_directory(self.config)).is_dir():
            raise UserError(f"cluster.working_directory {folder}: no such folder here")
        with hold(self.folder.lock, "choose run=..."), handle_signals(STOP_SIGNALS, self._stop):
            try:
                code = self._run()
            except KeyboardInterrupt:
                self._record("interrupted", "interrupted: all ranks are ended")
                code = INTERRUPTED
        return self.target.finish(self.config, code)

    def describe(self) -> str:
        """Hosts, command, environment and files of the first attempt, as far as known before hosts are asked."""
        return self._plan(self._next_attempt(), {}).describe()

    def _run(self) -> int:
        first = True
        while True:
            try:
                answers = self._ask()
            except UserError as error:
                if first:
                    raise
                outcome = Outcome("crashed", f"before any rank started: {'; '.join(str(error).splitlines())}")
            else:
                outcome = self._attempt(answers)
            first = False
            decision = decide(
                outcome, self.history, self.hosts, self.config.cluster, self._newest_step(), self.stop.is_set()
            )
            if not self._go_on(decision):
                return PREEMPTED if decision.restart else decision.exit_code

    def _ask(self) -> Answers:
        """Ask the hosts before an attempt. On a restart, silent ones count as failed and may be left out."""
        answers, silent = self.target.ask(self.config, self.hosts)
        problems = [f"{name}: {problem}" for name, problem in silent.items()]
        if silent and self.attempt is not None:
            for name, problem in silent.items():
                self.history.failures[name] = self.history.failures.get(name, 0) + 1
                self._record("host_failed", f"{name}: {problem}", host=name, failures=self.history.failures[name])
            bad = {name for name in silent if self.history.failures[name] >= self.config.cluster.host_failures}
            remaining = [host for host in self.hosts if host.name not in bad]
            if self.config.cluster.elastic and bad == set(silent) and len(remaining) >= self.config.cluster.min_nodes:
                self._leave_out(sorted(bad), "did not answer")
                problems = []
        if answers and not problems:
            problems = list(preflight.problems(self.config, self.hosts, answers))
        if problems:
            raise UserError(*problems)
        if answers:
            self.hosts = preflight.fill_slots(self.hosts, answers)
            self.config.engine.data_parallel_size(num_ranks(self.hosts))  # refuses ranks that make no whole groups
        return answers

    def _attempt(self, answers: Answers) -> Outcome:
        number = self._next_attempt()
        plan = self._plan(number, answers)
        names, step = [host.name for host in self.hosts], self._newest_step()
        self._record(
            "start",
            f"attempt {number}: {num_ranks(self.hosts)} ranks on {', '.join(names)} ({self.target.name}), "
            f"from step {step}",
            attempt=number,
            target=self.target.name,
            hosts=names,
            ranks=num_ranks(self.hosts),
            step=step,
        )
        folder = self.folder.attempt(number)
        self.attempt = Attempt(plan, folder, self.folder, self.config.cluster, on_poll=self._announce_stop)
        if self.stop.is_set():  # signalled while this was set up
            self.attempt.request_stop()
        outcome = self._with_culprit(self.attempt.execute())
        if outcome.ending == "preempted":
            self.stop.wait(self.target.signal_spread_s)
        self._announce_stop()
        where = f" (rank {outcome.rank} on {outcome.host})" if outcome.rank is not None else ""
        self._record(
            "end",
            f"attempt {number} {outcome.ending}{where}{': ' if outcome.reason else ''}{outcome.reason}",
            attempt=number,
            **asdict(outcome),
            step=self._newest_step(),
        )
        return outcome

    def _plan(self, number: int, answers: Answers) -> AttemptPlan:
        request = AttemptRequest(
            config=self.config,
            settings=self.settings,
            hosts=tuple(self.hosts),
            master=self.target.master(self.config, self.hosts, answers),
            folder=self.folder.attempt(number),
            variables=rank_variables(self.config, os.environ),
        )
        return self.target.plan(request)

    def _with_culprit(self, outcome: Outcome) -> Outcome:
        """Name the host that is gone, where a rank only saw another one vanish or nothing was seen."""
        only_seen = outcome.ending in ("hung", "crashed") and (blames_peer(outcome) or outcome.host is None)
        if not (only_seen or outcome.ending == "lost"):
            return outcome
        gone = self.target.gone([host.name for host in self.hosts])
        if not gone:
            return outcome
        name = outcome.host if outcome.host in gone else next(iter(gone))
        return replace(
            outcome,
            ending="lost",
            host=name,
            rank=None,
            reason=f"{name}: {gone[name]}; seen by others as: {outcome.reason}",
        )

    def _go_on(self, decision: Decision) -> bool:
        """Record a decision and wait as it says; whether another attempt follows."""
        if not decision.restart:
            name = "give_up" if decision.exit_code in (GIVEN_UP, USER_ERROR) else "finish"
            self._record(name, f"{decision.why} (exit code {decision.exit_code})", exit_code=decision.exit_code)
            return False
        if decision.left_out:
            self._leave_out(decision.left_out, decision.why)
        after = f" in {decision.delay_s:g} s" if decision.delay_s else ""
        self._record("restart", f"restart{after}: {decision.why}", delay_s=decision.delay_s, why=decision.why)
        return not self.stop.wait(decision.delay_s)

    def _leave_out(self, names: Sequence[str], why: str) -> None:
        before = num_ranks(self.hosts)
        self.hosts = [host for host in self.hosts if host.name not in names]
        self._record(
            "leave_out",
            f"{', '.join(names)} left out ({why}): {before} ranks become {num_ranks(self.hosts)}, "
            f"the global batch stays {self.config.data.batch_size}",
            left_out=list(names),
            hosts=[host.name for host in self.hosts],
            ranks=num_ranks(self.hosts),
        )

    def _stop(self, number: int) -> None:
        """Handle a signal: only set flags."""
        self.stop_signal = signal.Signals(number).name
        self.stop.set()
        if self.attempt is not None:
            self.attempt.request_stop()

    def _announce_stop(self) -> None:
        """Record a signal, outside of its handler."""
        name, self.stop_signal = self.stop_signal, ""
        if name:
            self._record("stop_requested", f"{name}: ranks finish their step, save and end", signal=name)

    def _record(self, event: str, text: str, **facts: Any) -> None:
        """Log a decision, and append it to RUN/events.jsonl: its name, a text for people, facts for programs."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, "text": text, **facts}
        say(f"launch: {text}")
        path = self.folder.events
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a full disk: training ends by itself, and the decision was logged
            say(f"launch: {path}: cannot write: {error.strerror}")

    def _newest_step(self) -> int:
        return max(self.folder.checkpoint_steps(), default=0)

    def _next_attempt(self) -> int:
        return max(self.folder.attempts(), default=0) + 1
