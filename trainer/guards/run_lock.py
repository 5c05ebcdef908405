"""One run, one trainer: a lock file in the folder that one job at a time may write, and following who holds it.

It names host, process and start. It is created exclusively (O_EXCL), which NFS has where `flock` is often missing, and
its holder touches it every few seconds. The lock of a process that has ended is taken over: on the same machine at
once, on another after SILENT_AFTER_S of watching without a sign of life, so that no clocks are compared.
"""

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transpooler.common import USER_ERROR, UserError, die_when, name_in_disk_problems, one_line, say, start_of

TOKEN = "TRANSPOOLER_LOCK"
"""Environment variable by which the processes of a job know the lock for their own."""
BEAT_EVERY_S = 5.0
SILENT_AFTER_S = 60.0
LOOK_EVERY_S = 0.5


class Holder:
    """Who holds a lock, and whether that process still lives, as far as can be seen from here."""

    def __init__(self, path: Path, facts: Mapping[str, Any], sign: int) -> None:
        self.path, self.facts = path, facts
        self._sign, self._silent_s, self._looked_at = sign, 0.0, time.monotonic()

    @classmethod
    def of(cls, path: Path) -> "Holder | None":
        """The holder of a lock; None where nobody holds it."""
        return None if (found := _read(path)) is None else cls(path, *found)

    def __str__(self) -> str:
        host, pid, since = (self.facts.get(key, "?") for key in ("host", "pid", "since"))
        return f"host {host}, process {pid}, since {since}"

    @property
    def token(self) -> str:
        """Differs between any two times that a lock was taken."""
        return str(self.facts.get("token"))

    def is_alive(self) -> bool | None:
        """Whether the holder still holds the lock; None: not known yet, ask again in some seconds.

        A lock that cannot be read, as while a file server is away, counts as one without a sign of life.
        """
        try:
            found = _read(self.path)
        except OSError:
            found = None
        if found is not None and found[0].get("token") != self.facts.get("token"):
            return False
        if self.facts.get("machine") == _machine() and _is_visible(self.facts["pid"]):
            return start_of(self.facts["pid"]) == self.facts["start"]
        now, before = time.monotonic(), self._looked_at
        self._looked_at = now
        if found is not None and found[1] != self._sign:
            self._sign, self._silent_s = found[1], 0.0
            return True
        self._silent_s += min(now - before, 2 * BEAT_EVERY_S)  # while this process was suspended it saw nothing
        return False if self._silent_s > SILENT_AFTER_S else None


@contextmanager
def hold(path: Path, remedy: str) -> Iterator[None]:
    """Hold the lock inside the block. UserError names who holds it, and ends with the `remedy`.

    A job takes it once: processes that inherit this one's environment know it for their own and end with its holder.
    Of ranks that an engine started without us, rank 0 takes it for all. What is written inside the block goes into the
    lock's folder, which a full disk is told with.
    """
    with name_in_disk_problems(path.parent), _hold(path, remedy):
        yield


@contextmanager
def _hold(path: Path, remedy: str) -> Iterator[None]:
    holder = Holder.of(path)
    if holder is not None and os.environ.get(TOKEN) == holder.token:
        if holder.is_alive() is False:
            raise UserError(f"{path.parent}: the launcher of this process has ended ({holder}); start it again")
        if holder.facts["pid"] != os.getpid() and holder.facts["machine"] == _machine():
            die_when(lambda: start_of(holder.facts["pid"]) != holder.facts["start"])
        yield
    elif os.environ.get("RANK", "0") != "0":
        yield
    else:
        created = [parent for parent in path.absolute().parents if not parent.exists()]
        try:
            with _held(path, _take(path, remedy)):
                yield
        finally:
            with suppress(OSError):
                for parent in created:  # where it failed before anything was written
                    parent.rmdir()


@contextmanager
def _held(path: Path, facts: Mapping[str, Any]) -> Iterator[None]:
    """Give signs of life inside the block, and remove the lock behind it."""
    before, ended = os.environ.get(TOKEN), threading.Event()
    beat = threading.Thread(target=_beat, args=(path, facts, ended), name="lock", daemon=True)
    beat.start()
    os.environ[TOKEN] = facts["token"]
    try:
        yield
    finally:
        os.environ.pop(TOKEN) if before is None else os.environ.update({TOKEN: before})
        ended.set()
        beat.join()
        with suppress(OSError):
            _remove(path, facts["token"])


def _take(path: Path, remedy: str) -> dict[str, Any]:
    """Create the lock file, whose facts are returned, as soon as nobody else holds it."""
    seen: Holder | None = None
    facts = {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": _machine(),
        "start": start_of(os.getpid()),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot make this folder: {error.strerror}; {remedy}") from error
    while not _create(path, facts):
        if (holder := Holder.of(path)) is None:
            continue
        is_new = seen is None or seen.token != holder.token
        seen = holder if seen is None or is_new else seen
        alive = seen.is_alive()
        if alive:
            raise UserError(f"{path.parent}: is in use by {seen}; wait for its end, stop that process, or {remedy}")
        if alive is not None:
            say(f"{path.parent}: was in use by {seen}, which has ended")
            _remove(path, seen.token)
        else:
            if is_new:
                say(f"{path.parent}: in use by {seen}? Waits up to {SILENT_AFTER_S:.0f} s for a sign of life")
            time.sleep(LOOK_EVERY_S)
    return facts


def _create(path: Path, facts: Mapping[str, Any]) -> bool:
    """Create the lock file; False where it exists."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            try:
                file.write(json.dumps(facts))
                file.flush()
            except OSError:
                path.unlink()
                raise
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> tuple[dict[str, Any], int] | None:
    """What a lock file says ({} where it is just being written), and its sign of life; None where there is none."""
    try:
        with open(path, encoding="utf-8") as file:  # opened, because NFS then asks the server, not its cache
            text, sign = file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    try:
        facts = json.loads(text)
    except ValueError:
        facts = {}
    return (facts if isinstance(facts, dict) else {}), sign


def _remove(path: Path, token: str) -> None:
    """Remove the lock of this token. Of several processes that do so one gets the file; none removes another lock."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if (held := Holder.of(aside)) and held.token != token:  # another process was faster: give its lock back
        with suppress(OSError):
            os.link(aside, path)
    aside.unlink()


def _beat(path: Path, facts: Mapping[str, Any], ended: threading.Event) -> None:
    """Give signs of life; end this process where another has taken over, as after a long suspension of this one."""
    while not ended.wait(BEAT_EVERY_S):
        with suppress(OSError):
            if (holder := Holder.of(path)) is None:
                _create(path, facts)  # somebody has tidied up
            elif holder.token == facts["token"]:
                os.utime(path)
            else:
                problem = one_line(f"{path.parent}: was taken over by {holder}; ends here")
                print(f"transpooler: error: {problem}", file=sys.stderr)
                os._exit(USER_ERROR)


def _is_visible(pid: int) -> bool:
    """False where the system hides this process, which belongs to somebody else (hidepid of /proc)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return start_of(pid) is not None
    except OSError:
        pass
    return True


def _machine() -> str:
    """Names the processes that this one can see and ask for: those of one boot and one container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
