"""Can hosts reach each other's ports, in both directions?

    python -m transpooler.launch.cluster.doctor.ports PORT ADDRESS:PORT...

Run on all hosts at the same time. It listens on PORT, connects to every other host, and prints the addresses that it
could not reach as one line of JSON.
"""

import socket
import sys
import threading
import time
from collections.abc import Sequence

from transpooler.launch.cluster.doctor.probe import print_answer

PATIENCE_S = 15.0


def find_unreached(port: int, others: Sequence[str], patience_s: float = PATIENCE_S) -> dict[str, str]:
    """Addresses that do not answer within `patience_s` seconds, and the error of the last try."""
    with socket.create_server(("", port), backlog=1024) as server:
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        deadline, left = time.monotonic() + patience_s, dict.fromkeys(others, "")
        while left and time.monotonic() < deadline:
            for address in list(left):
                host, _, number = address.rpartition(":")
                try:
                    socket.create_connection((host, int(number)), timeout=2.0).close()
                    del left[address]
                except OSError as error:
                    left[address] = str(error)
            time.sleep(0.1)
        # Others may still be trying to reach us.
        time.sleep(max(0.0, min(2.0, deadline - time.monotonic())) if not left else 0.0)
    return left


def _accept(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:  # closed by the main thread
            return


if __name__ == "__main__":
    print_answer(find_unreached(int(sys.argv[1]), sys.argv[2:]))
