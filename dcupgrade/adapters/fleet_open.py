"""Open the engine that the settings name."""

from __future__ import annotations

import os

from dcupgrade.settings.schema import Settings

from .fleet import FleetEngine, unreachable
from .fleet_etcd import EtcdFleet
from .fleet_kubernetes import KubernetesFleet, in_cluster


def open_engine(settings: Settings) -> FleetEngine | None:
    """Open the fleet's engine; None for a node without a fleet. Raises FLEET_UNREACHABLE if no API server is known."""
    fleet = settings.fleet
    if fleet.engine == "none":
        return None
    if fleet.engine == "etcd":
        return EtcdFleet(
            fleet.name,
            fleet.endpoints,
            user=fleet.user,
            password_file=fleet.password_file,
            ca_file=fleet.ca_file,
            cert_file=fleet.cert_file,
            key_file=fleet.key_file,
        )
    token, ca = in_cluster()
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not fleet.endpoints and not host:
        raise unreachable("Kubernetes", "fleet.endpoints names no API server, and this is no pod")
    url = fleet.endpoints[0] if fleet.endpoints else f"https://{f'[{host}]' if ':' in host else host}:{port}"
    return KubernetesFleet(
        fleet.name,
        url,
        fleet.namespace,
        token_file=fleet.token_file or token,
        ca_file=fleet.ca_file or (None if fleet.endpoints else ca),
    )
