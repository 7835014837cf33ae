"""Health checks of the compose file: `python -m devnet.docker.healthy tcp|http|rpc PORT`; exit code 0 if healthy."""

import json
import socket
import sys
import urllib.request

TIMEOUT_S = 3.0


def main(kind: str, port: int) -> int:
    """Tell whether a loopback port accepts (tcp), answers /healthz (http), or a chain on it answers RPC (rpc)."""
    try:
        if kind == "tcp":
            socket.create_connection(("127.0.0.1", port), TIMEOUT_S).close()
            return 0
        if kind == "http":
            request = urllib.request.Request(f"http://127.0.0.1:{port}/healthz")
        else:
            body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "chain_getFinalizedHead", "params": []}).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310  (http on loopback)
            return 0 if answer.status == 200 else 1
    except OSError:
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
