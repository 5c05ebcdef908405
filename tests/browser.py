"""A page in a real browser: a script appended to it does what a reader would do, and leaves what it saw in the page."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


NARROWEST = 500
"""Chromium makes no window narrower, in pixels; a frame may be."""


def seen(page: Path, script: str, width: int, tmp_path: Path, *flags: str) -> Any:
    """What `script`, the body of a function run in the page in a window of this width, returns."""
    tail = (
        f"<script>const found = JSON.stringify((() => {{ {script} }})());"
        "const pre = document.createElement('pre'); pre.id = 'seen'; pre.textContent = found;"
        "(parent === self ? document : parent.document).body.append(pre);</script>"
    )
    copy = page.with_name("copy.html")
    copy.write_text(page.read_text(encoding="utf-8") + tail, encoding="utf-8")
    shown = copy
    if width < NARROWEST:
        shown = page.with_name("frame.html")
        shown.write_text(f'<body><iframe src="copy.html" style="border:0;width:{width}px;height:844px"></iframe>')
        flags = (*flags, "--allow-file-access-from-files")
    command = [
        *(str(BROWSER), *FLAGS, *flags, f"--user-data-dir={tmp_path / 'profile'}"),
        *(f"--window-size={max(width, NARROWEST)},900", "--dump-dom", shown.as_uri()),
    ]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="seen">(.*?)</pre>', printed, re.S)
    assert found, printed[-500:]
    return json.loads(unescape(found[1]))
