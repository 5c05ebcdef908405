"""Can hosts reach each other's ports, in both directions?

    python -m transpooler.launch.cluster.doctor.ports PORT ADDRESS:PORT...

Run on all hosts at once: listens on PORT and connects to every other host; prints, as one line of JSON, the addresses
that it could not reach. Standard library only.
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Sequence

MARK = "transpooler-ports "
PATIENCE_S = 15.0


def unreached(port: int, others: Sequence[str], patience_s: float = PATIENCE_S) -> dict[str, str]:
    """Addresses that do not answer within `patience_s`, and what the last try said."""
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
        except OSError:  # closed: we are done
            return


if __name__ == "__main__":
    print(MARK + json.dumps(unreached(int(sys.argv[1]), sys.argv[2:])))
