"""Worker processes end with the process that started them, however that ends."""

import subprocess
import sys

import psutil

PROGRAM = """
import os, time
from transpooler.data_pipeline.prepare.executors import Executor
if __name__ == "__main__":
    executor = Executor("processes", 2)
    list(executor.run(time.sleep, [(0.2,)] * 6))
    print("ready", flush=True)
    time.sleep(600)
"""


def test_workers_die_with_a_killed_parent():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        workers = psutil.Process(parent.pid).children()
        parent.kill()
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=10)
    for worker in alive:
        worker.kill()
    assert not alive
