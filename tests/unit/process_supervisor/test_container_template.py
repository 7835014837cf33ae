"""Container settings: taken from a running container, made from settings, changed for the next image."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from process_supervisor.container_template import (
    ContainerOptions,
    ContainerTemplate,
    Mount,
    devices_of,
    differences,
    mounts_of,
    parse_device,
    parse_mount,
    parse_pair,
    parse_ulimit,
    template_of,
)

ID = "f" * 64
IMAGE: dict[str, Any] = {
    "Id": "sha256:" + "1" * 64,
    "Config": {
        "Env": ["PATH=/usr/bin", "LIB=old"],
        "Cmd": ["--serve"],
        "Entrypoint": ["/entry"],
        "User": "node",
        "StopSignal": "SIGINT",
        "Labels": {"vendor": "dc"},
        "Volumes": {"/cache": {}},
        "WorkingDir": "/opt",
    },
}


def shown(**config: Any) -> dict[str, Any]:
    """A container as the engine shows it: the field's, by its manager's settings."""
    binds = [
        "/opt/dcnetio/disks:/opt/dcnetio/disks:shared",
        "dcstorage:/opt/dcnetio/data",
        "/opt/dcnetio/etc:/etc/dc:ro",
    ]
    return {
        "Id": ID,
        "Name": "/dcstorage",
        "Image": IMAGE["Id"],
        "Config": {
            **IMAGE["Config"],
            "Image": "dcnetio/dcstorage:0.0.1",
            "Hostname": "host",
            "Entrypoint": ["dcstorage"],
            "Cmd": None,
            "Env": ["SET=1", "PATH=/usr/bin", "LIB=old"],
            "Labels": {"vendor": "dc", "mine": "x", "com.docker.compose.project": "p", "dcupgrade.node": "n"},
            **config,
        },
        "HostConfig": {
            "Binds": binds,
            "NetworkMode": "host",
            "RestartPolicy": {"Name": "always", "MaximumRetryCount": 0},
            "AutoRemove": False,
            "Devices": [
                {"PathOnHost": "/dev/sgx/enclave", "PathInContainer": "/dev/sgx/enclave", "CgroupPermissions": "rwm"}
            ],
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "100m", "max-file": "3"}},
            "CapAdd": None,
            "MaskedPaths": [],
            "Privileged": False,
        },
        "Mounts": [
            {"Type": "volume", "Name": "dcstorage", "Destination": "/opt/dcnetio/data", "RW": True},
            {"Type": "volume", "Name": "9" * 64, "Destination": "/cache", "RW": True},
        ],
    }


def test_a_containers_settings_are_kept_and_its_images_are_not() -> None:
    template = template_of(shown(), IMAGE)
    assert template.name == "dcstorage"
    assert template.config == {"Entrypoint": ["dcstorage"], "Cmd": [], "Env": ["SET=1"], "Labels": {"mine": "x"}}
    assert "RestartPolicy" not in template.host
    assert devices_of(template.host) == ["/dev/sgx/enclave"]
    assert mounts_of(template.host) == [
        Mount("bind", "/opt/dcnetio/disks", "/opt/dcnetio/disks", propagation="shared"),
        Mount("volume", "dcstorage", "/opt/dcnetio/data"),
        Mount("bind", "/opt/dcnetio/etc", "/etc/dc", read_only=True),
        # what lies in a volume without a name goes with the node too
        Mount("volume", "9" * 64, "/cache"),
    ]
    assert template.host["LogConfig"]["Config"]["max-size"] == "100m"
    assert template.host["MaskedPaths"] == []
    assert ContainerTemplate.from_json(template.to_json()) == template


def test_settings_that_differ_from_the_image_are_kept() -> None:
    own = shown(User="0", StopTimeout=60, WorkingDir="/srv", StopSignal="SIGTERM", Volumes={"/cache": {}, "/more": {}})
    config = template_of(own, IMAGE).config
    assert {key: config[key] for key in ("User", "StopTimeout", "WorkingDir", "StopSignal", "Volumes")} == {
        "User": "0",
        "StopTimeout": 60,
        "WorkingDir": "/srv",
        "StopSignal": "SIGTERM",
        "Volumes": {"/more": {}},
    }


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"Entrypoint": ["/entry"], "Cmd": ["--serve"]}, {}),
        ({"Entrypoint": ["/entry"], "Cmd": ["--other"]}, {"Cmd": ["--other"]}),
        ({"Entrypoint": ["/other"], "Cmd": ["--serve"]}, {"Entrypoint": ["/other"], "Cmd": ["--serve"]}),
    ],
)
def test_a_command_of_ones_own_is_told_from_the_images(config: dict[str, Any], kept: dict[str, Any]) -> None:
    found = template_of(shown(**config), IMAGE).config
    assert {key: found[key] for key in ("Entrypoint", "Cmd") if key in found} == kept


def test_names_and_addresses_in_a_network_of_ones_own_are_kept() -> None:
    own = shown(Hostname="storage")
    own["HostConfig"]["NetworkMode"] = "dcnet"
    address = {"IPv4Address": "10.0.0.2"}
    own["NetworkSettings"] = {"Networks": {"dcnet": {"IPAMConfig": address, "Aliases": ["storage", ID[:12]]}}}
    config = template_of(own, IMAGE).config
    assert config["Hostname"] == "storage"
    assert config["NetworkingConfig"] == {"EndpointsConfig": {"dcnet": {"IPAMConfig": address, "Aliases": ["storage"]}}}
    own["Config"]["Hostname"] = ID[:12]
    assert "Hostname" not in template_of(own, IMAGE).config


def test_the_engine_never_restarts_what_is_made_of_a_template() -> None:
    body = template_of(shown(), IMAGE).body("sha256:2", {"dcupgrade.node": "n"})
    assert body["HostConfig"]["RestartPolicy"] == {"Name": "no"}
    assert body["Image"] == "sha256:2"
    assert body["Labels"] == {"mine": "x", "dcupgrade.node": "n"}


def test_what_the_next_image_changes_is_told() -> None:
    new = {
        "Id": "sha256:" + "2" * 64,
        "Config": {**IMAGE["Config"], "Env": ["PATH=/usr/bin", "LIB=new"], "User": "", "Volumes": {}},
    }
    template = template_of(shown(), IMAGE)
    assert differences(shown(), template, IMAGE, "x") == []
    assert differences(shown(), template, new, "dcnetio/dcstorage@sha256:0") == [
        "Image: dcnetio/dcstorage:0.0.1 -> dcnetio/dcstorage@sha256:0",
        "User: node -> none",
        "Env: without LIB=old",
        "Env: with LIB=new",
        "Volumes: without /cache",
    ]


def test_settings_make_the_container_that_the_fields_manager_makes() -> None:
    template = ContainerOptions(
        name="dcstorage",
        entrypoint=("dcstorage",),
        mounts=tuple(map(parse_mount, ("dcstorage:/opt/dcnetio/data", "/opt/dcnetio/disks:/opt/dcnetio/disks:shared"))),
        devices=("/dev/sgx_enclave:/dev/sgx/enclave", "/dev/sgx_provision"),
        capabilities=("SYS_NICE",),
        ulimits=("nofile=1024:2048",),
        labels=("a=b=c",),
        log_options=("max-size=100m", "max-file=3"),
    ).template()
    assert template.config == {"Entrypoint": ["dcstorage"], "Labels": {"a": "b=c"}}
    assert template.host["NetworkMode"] == "host"
    assert template.host["Mounts"][1]["BindOptions"] == {"Propagation": "shared"}
    assert template.host["Devices"][0]["PathInContainer"] == "/dev/sgx/enclave"
    assert template.host["Ulimits"] == [{"Name": "nofile", "Soft": 1024, "Hard": 2048}]
    assert {"ReadonlyRootfs", "CapDrop", "SecurityOpt", "PidsLimit"} & set(template.host) == set()


def test_a_confined_container_is_confined() -> None:
    host = ContainerOptions(confined=True, read_only_root=True).template().host
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["SecurityOpt"]) == (True, ["ALL"], ["no-new-privileges"])
    assert host["PidsLimit"] > 0
    assert host["Ulimits"] == [{"Name": "core", "Soft": 0, "Hard": 0}]
    assert "/tmp" in host["Tmpfs"]  # noqa: S108


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *((parse_mount, text) for text in ("", "a", "a:", ":/b", "a:b", "./a:/b", "a/b:/c", "a:/b:x", "a:/b:shared")),
        *((parse_device, text) for text in ("", "dev", "/dev/a:rwx", "/a:/b:/c", "/a:b")),
        *((parse_ulimit, text) for text in ("", "core", "core=", "core=a", "core=1:b")),
        *((parse_pair, text) for text in ("", "a", "=a")),
    ],
)
def test_what_docker_run_would_refuse_is_refused(parse: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|neither"):
        parse(text)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name":1,"config":{},"host":{}}', "[" * 100_000, "x" * 2_000_000])
def test_a_damaged_template_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        ContainerTemplate.from_json(text)


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_only_value_errors_come_of_a_template(value: Any) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(ContainerTemplate.from_json(json.dumps(value)), ContainerTemplate)
