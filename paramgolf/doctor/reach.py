"""Whether a server answers: `python -m paramgolf.doctor.reach URL` exits with 0 if it does.

A process of its own, because a name server that is silent cannot be waited for with a limit.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit

SECONDS = 1.5
PORTS = {"ssh": 22, "webdav": 80, "webdavs": 443}
TRIED = ("http", "https", *PORTS)


def reachable(url: str) -> bool:
    """Tell whether the server of `url` answered within SECONDS."""
    command = [sys.executable, "-m", "paramgolf.doctor.reach", url]
    try:
        return subprocess.run(command, capture_output=True, timeout=SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def main(url: str) -> int:
    """Return 0 if the server answers, whatever it answers, else 1."""
    parts = urlsplit(url)
    try:
        if parts.scheme in PORTS:
            port = parts.port or PORTS[parts.scheme]
            socket.create_connection((parts.hostname or "", port), SECONDS).close()
        else:
            head = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(head, timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return 0  # a refusal is an answer
    except OSError:
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
