"""The host's preconditions for a container are checked before anything is stopped."""

from pathlib import Path

import pytest

from process_supervisor import container_host
from process_supervisor.container_host import missing_of_host
from process_supervisor.container_template import ContainerOptions, ContainerTemplate, parse_mount


def template(*mounts: str, devices: tuple[str, ...] = ()) -> ContainerTemplate:
    return ContainerOptions(mounts=tuple(map(parse_mount, mounts)), devices=devices).template()


def mount_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    path = tmp_path / "mountinfo"
    path.write_text("".join(f"{number} 1 0:1 / {line} - ext4 x rw\n" for number, line in enumerate(lines)))
    monkeypatch.setattr(container_host, "MOUNT_TABLES", (tmp_path / "nowhere", path))


def test_devices_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    asked = template(devices=("/dev/null", "/dev/nowhere", str(tmp_path / "file")))
    assert missing_of_host(asked) == [
        ("CONTAINER_DEVICE_MISSING", "there is no device /dev/nowhere"),
        ("CONTAINER_DEVICE_MISSING", f"{tmp_path / 'file'} is no device"),
    ]


def test_the_other_name_of_an_sgx_device_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_host, "_SGX_NAMES", {"/dev/nowhere": "/dev/null"})
    ((_, words),) = missing_of_host(template(devices=("/dev/nowhere",)))
    assert words == "there is no device /dev/nowhere; this host has /dev/null"


def test_folders_that_are_not_there_are_named_and_volumes_are_the_engines(tmp_path: Path) -> None:
    asked = template(f"{tmp_path}:/a", f"{tmp_path}/none:/b:ro", "volume:/c")
    assert missing_of_host(asked) == [("CONTAINER_MOUNT_MISSING", f"there is no {tmp_path}/none to mount at /b")]


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (("/ / rw shared:1",), False),
        (("/ / rw",), True),
        (("/ / rw shared:1", "{} / rw"), True),
        (("/ / rw", "{} / rw master:4"), False),
        (("/ / rw", "{}x / rw shared:1"), True),
    ],
)
def test_shared_propagation_needs_a_shared_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...], found: bool
) -> None:
    disks = tmp_path / "my disks"
    disks.mkdir()
    point = str(disks).replace(" ", "\\040")
    mount_table(tmp_path, monkeypatch, *(line.format(point).replace(" / rw", " rw", 1) for line in lines))
    missing = missing_of_host(template(f"{disks}:/disks:shared"))
    assert [code for code, _ in missing] == (["CONTAINER_MOUNT_MISSING"] if found else [])
    assert missing_of_host(template(f"{disks}:/disks")) == []
