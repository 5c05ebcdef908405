"""One attempt: starts the engine, merges what ranks print, watches their signs of life, says who ended it and how."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from transpooler.common import DONE, PREEMPTED, USER_ERROR, UserError, die_with_parent
from transpooler.launch.cluster.attempt_plan import AttemptPlan
from transpooler.launch.cluster.hosts import num_ranks
from transpooler.trainer.config.cluster import ClusterConfig
from transpooler.trainer.run_folder import RunFolder

POLL_EVERY_S = 0.25
LOOK_S_PER_RANK = 0.002
"""Signs of life are files on a shared file system, so large jobs are polled less often."""
END_TOGETHER_S = 20.0
"""How long the engine may take to end the other ranks after one has failed, before it is killed."""
ENGINE_END_S = 3.0
"""How long an engine may take to end by itself, and again after SIGTERM."""
START_TIMEOUT_S = 600.0
"""Ranks must give their first sign of life within this time."""
RANK_LINE = re.compile(r"^(?:\S+: )?(?P<line>\[rank (?P<rank>\d+) (?P<host>\S+)\] .*)$")
STOPPED_STATES = ("stopped", "tracing-stop")
"""As psutil names them: after SIGSTOP, or in a debugger."""
MISTAKE = "transpooler: error: "


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended; rank, host and reason name the culprit if there is one."""

    ending: str
    """done, mistake, preempted, crashed, lost, stopped or hung."""
    reason: str = ""
    rank: int | None = None
    host: str | None = None
    exit_code: int | None = None


@dataclass
class _Sign:
    facts: dict[str, Any]
    changed_at: float
    stopped_since: float | None = None
    ended_at: float | None = None


@dataclass
class Attempt:
    """One attempt; `execute` runs it, `request_stop` asks its ranks to save and end with 75."""

    plan: AttemptPlan
    folder: Path
    run: RunFolder
    cluster: ClusterConfig
    signs: dict[int, _Sign] = field(default_factory=dict)
    engine_lines: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    mistakes: dict[str, tuple[int, str] | None] = field(default_factory=dict)
    """Each user's mistake that was reported, with the (rank, host) that did so first; None: before any rank started."""
    started_at: float = 0.0
    progress_at: float = 0.0
    metrics_size_bytes: int = -1
    stop_requested_at: float | None = None
    on_poll: Callable[[], None] = lambda: None
    """Called several times a second while the ranks run."""

    def execute(self) -> Outcome:
        """Run it to its end. A run folder that cannot be written is a mistake of the user; nothing is raised."""
        try:
            self.plan.write()
            self.run.logs.mkdir(parents=True, exist_ok=True)
        except (OSError, UserError) as error:
            return Outcome("mistake", str(error), exit_code=USER_ERROR)
        with _open_log(self.run.logs / "all.log") as merged:
            merged.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {self.folder.name} ({self.plan.target})\n")
            engine = subprocess.Popen(
                self.plan.command,
                cwd=self.plan.directory,
                env=os.environ | self.plan.engine_variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone
                preexec_fn=die_with_parent,
            )
            assert engine.stdout is not None
            reader = threading.Thread(target=self._merge, args=(engine.stdout, merged), daemon=True)
            reader.start()
            try:
                outcome = self._watch(engine)
            finally:
                with contextlib.suppress(OSError):
                    (self.folder / "kill").touch()
                self._end(engine)
                reader.join(timeout=5.0)
        return outcome

    def request_stop(self) -> None:
        """Ask the ranks of all hosts to save and end: they look for a file."""
        if self.stop_requested_at is None:
            self.stop_requested_at = time.monotonic()
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "stop").touch()

    def _watch(self, engine: subprocess.Popen[bytes]) -> Outcome:
        self.started_at = self.progress_at = time.monotonic()
        failed_at: float | None = None
        while (code := engine.poll()) is None:
            time.sleep(max(POLL_EVERY_S, LOOK_S_PER_RANK * num_ranks(self.plan.hosts)))
            now = time.monotonic()
            self._read_signs(now)
            self.on_poll()
            if (outcome := self._find_silent(now)) is not None:
                return outcome
            if failed_at is None and any(sign.facts.get("exit") for sign in self.signs.values()):
                failed_at = now
            if failed_at is not None and now - failed_at > (ENGINE_END_S if self._all_ended() else END_TOGETHER_S):
                break
            if self.stop_requested_at is not None and now - self.stop_requested_at > self.cluster.stop_grace_s:
                return Outcome(
                    "stopped", f"ranks did not save within cluster.stop_grace_s = {self.cluster.stop_grace_s:g} s"
                )
        self._read_signs(time.monotonic())
        return self._judge_end(code)

    def _read_signs(self, now: float) -> None:
        """Read the signs of life, and whether metrics have grown."""
        for path in self.folder.glob("rank-*.json"):
            try:
                facts = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):  # being replaced
                continue
            sign = self.signs.get(facts["rank"])
            if sign is None:
                sign = self.signs[facts["rank"]] = _Sign(facts, now)
            if facts["beat"] != sign.facts["beat"]:
                sign.facts, sign.changed_at = facts, now
            stopped = facts["state"] in STOPPED_STATES and "exit" not in facts
            sign.stopped_since = (sign.stopped_since or now) if stopped else None
            if "exit" in facts and sign.ended_at is None:
                sign.ended_at = now
        with contextlib.suppress(OSError):  # not there yet, or not any more
            size = self.run.metrics.stat().st_size
            if size != self.metrics_size_bytes:
                self.metrics_size_bytes, self.progress_at = size, now

    def _find_silent(self, now: float) -> Outcome | None:
        """The outcome where a rank is stopped, a rank or host went silent, or the job hangs; else None."""
        limit = self.cluster.heartbeat_timeout_s
        running = [sign for sign in self.signs.values() if "exit" not in sign.facts]
        if not self.signs and now - self.started_at > START_TIMEOUT_S:
            return Outcome("hung", f"no rank started within {START_TIMEOUT_S:.0f} s: {self._last_engine_line()}")
        for sign in running:
            if sign.stopped_since is not None and now - sign.stopped_since > limit:
                return _blame_stopped(sign)
        silent = [sign for sign in running if now - sign.changed_at > limit]
        if silent:
            sign = min(silent, key=lambda sign: sign.changed_at)
            return _blame(
                "lost", sign, f"no sign of life for {limit:.0f} s: the host lost power or its disk, or all was killed"
            )
        hang = self.cluster.hang_timeout_s
        if hang and now - self.progress_at > hang:
            return Outcome("hung", f"no progress for {hang:.0f} s; ranks wait in {self._describe_states()}")
        return None

    def _judge_end(self, code: int | None) -> Outcome:
        """Who ended the attempt, and how; `code` is the engine's, None where it still runs and has to be ended."""
        signs = self.signs.values()
        exits = [sign.facts["exit"] for sign in signs if "exit" in sign.facts]
        if code == DONE and all(value == DONE for value in exits):
            return Outcome("done")
        mistaken = next((sign for sign in signs if sign.facts.get("exit") == USER_ERROR), None)
        if mistaken is not None and not self.mistakes:
            return _blame("mistake", mistaken, _describe_exit(mistaken))
        if self.mistakes and (mistaken is not None or not exits):  # no exits: the disk was too full for them
            rank, host = next(iter(self.mistakes.values())) or (None, None)
            return Outcome("mistake", "; ".join(self.mistakes), rank, host, USER_ERROR)
        # These ranks wrote no exit record: they were killed together with their watcher, unless told to stop.
        wordless = [sign for sign in signs if "exit" not in sign.facts and not sign.facts["stop_signal"]]
        failed = sorted((sign for sign in signs if sign.facts.get("exit")), key=_end_time)
        killed = next((sign for sign in failed if sign.facts["exit"] < 0 and not sign.facts["stop_signal"]), None)
        if killed is None and wordless and exits:
            stopped = next((sign for sign in wordless if sign.stopped_since is not None), None)
            if stopped is not None:
                return _blame_stopped(stopped)
            return _blame(
                "lost", wordless[0], "ended without a word: it was killed together with its watcher, or the host died"
            )
        if failed:
            culprit = killed or failed[0]
            if culprit.facts["exit"] == PREEMPTED or (self.stop_requested_at is not None and PREEMPTED in exits):
                return Outcome("preempted", "ranks saved and stopped", exit_code=PREEMPTED)
            return _blame("crashed", culprit, _describe_exit(culprit))
        return Outcome(
            "crashed",
            f"the engine of target {self.plan.target} ended with {code}: {self._last_engine_line()}",
            exit_code=code,
        )

    def _all_ended(self) -> bool:
        return sum("exit" in sign.facts for sign in self.signs.values()) >= num_ranks(self.plan.hosts)

    def _merge(self, source: IO[bytes], merged: IO[str]) -> None:
        """Copy lines of ranks to all.log and standard error, and those of the engine to all.log alone."""
        for raw in source:
            text = raw.decode(errors="replace").rstrip("\n")
            match = RANK_LINE.match(text)
            line = match["line"] if match else f"[{self.plan.target}] {text}"
            if MISTAKE in text:
                source_of = (int(match["rank"]), match["host"]) if match else None
                self.mistakes.setdefault(text.partition(MISTAKE)[2], source_of)
            if match:
                self.progress_at = time.monotonic()
                print(line, file=sys.stderr, flush=True)
            else:
                self.engine_lines.append(text)
            try:
                merged.write(line + "\n")
                merged.flush()
            except (OSError, ValueError):  # a full disk must not end the job
                continue

    def _end(self, engine: subprocess.Popen[bytes]) -> None:
        """End the engine and all that it started on this machine; ranks elsewhere end through the kill file."""
        gently = (signal.SIGTERM,) if self.plan.ends_gently else ()
        for number in (0, *gently, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(engine.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                engine.wait(None if number == signal.SIGKILL else ENGINE_END_S)

    def _last_engine_line(self) -> str:
        return next((line.strip() for line in reversed(self.engine_lines) if line.strip()), "it said nothing")

    def _describe_states(self) -> str:
        return ", ".join(f"rank {number}: {sign.facts['state']}" for number, sign in sorted(self.signs.items()))


@contextlib.contextmanager
def _open_log(path: Path) -> Iterator[IO[str]]:
    """Open a log for appending. Closing it never fails: a full disk costs its last lines, not the outcome."""
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            file.close()


def _end_time(sign: _Sign) -> tuple[float, float]:
    """Sorts ranks by when their end was seen here; the clocks of hosts decide only between ends seen together."""
    return (sign.ended_at or 0.0, sign.facts.get("ended", 0.0))


def _blame(ending: str, sign: _Sign, reason: str) -> Outcome:
    facts = sign.facts
    return Outcome(ending, reason, facts["rank"], facts["host"], facts.get("exit"))


def _blame_stopped(sign: _Sign) -> Outcome:
    return _blame("stopped", sign, f"its process {sign.facts['pid']} is stopped (SIGSTOP or a debugger)")


def _describe_exit(sign: _Sign) -> str:
    """Why a rank ended, in its own last words."""
    code = sign.facts["exit"]
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    lines = [line for line in sign.facts.get("last_lines", []) if line.strip()]
    errors = [line.removeprefix(MISTAKE) for line in lines if line.startswith(MISTAKE)]
    return "; ".join(errors) or f"exit code {code}: {lines[-1] if lines else 'it said nothing'}"
