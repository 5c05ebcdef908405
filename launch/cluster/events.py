"""RUN/events.jsonl: one line for every decision of the launcher, appended and fsynced."""

import json
import os
import time
from pathlib import Path
from typing import Any

from transpooler.common.log import say
from transpooler.trainer.run_folder import RunFolder


class Events:
    """Appends decisions to RUN/events.jsonl, and says them."""

    def __init__(self, run: Path) -> None:
        self.path = RunFolder(run).events

    def write(self, event: str, text: str, **facts: Any) -> None:
        """Record one decision: `event` is its name, `text` what a person reads, `facts` what a program does."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, "text": text, **facts}
        say(f"launch: {text}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a full disk: training ends on its own account, the decision was said
            say(f"launch: {self.path}: cannot write: {error.strerror}")


def read_events(run: Path) -> list[dict[str, Any]]:
    """All lines; a half-written last one is left out."""
    path = RunFolder(run).events
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
