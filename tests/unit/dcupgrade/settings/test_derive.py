"""Values that other parts derive from the settings."""

from dcupgrade.settings.derive import download_limits
from dcupgrade.settings.load import structure


def test_only_early_hosts_are_exempt_for_whatever_is_asked_of_them() -> None:
    """A gateway is named for CIDs, not for what releases name: see decision 23."""
    settings = structure(
        {
            "agent": {"state_dir": "/var/lib/dcupgrade"},
            "chain": {
                "endpoints": ["ws://127.0.0.1:1"],
                "network_keys": ["bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq"],
                "genesis_hash": "0x" + "ab" * 32,
                "checkpoint_file": "/etc/dcupgrade/checkpoint.json",
            },
            "node": {"id": "n1", "data_dir": "/srv/dcnode"},
            "vault": {"start": False},
            "download": {"early_hosts": ["Mirror.lan"], "ipfs_gateways": ["http://127.0.0.1:8080"]},
        },
        environ={},
    )
    limits = download_limits(settings)
    assert limits.own_hosts == {"mirror.lan"}
    assert limits.ipfs_gateways == ("http://127.0.0.1:8080",)
