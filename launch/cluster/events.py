"""RUN/events.jsonl: a line for every decision of the launcher, appended and fsynced."""

import json
import os
import time
from pathlib import Path
from typing import Any

from transpooler.common.log import say
from transpooler.trainer.run_folder import RunFolder


class Events:
    """Appends decisions to RUN/events.jsonl and logs them."""

    def __init__(self, run: Path) -> None:
        self.path = RunFolder(run).events

    def write(self, event: str, text: str, **facts: Any) -> None:
        """Record a decision: `event` is its name, `text` is for people, `facts` are for programs."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, "text": text, **facts}
        say(f"launch: {text}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a full disk: training ends by itself, and the decision was logged
            say(f"launch: {self.path}: cannot write: {error.strerror}")
