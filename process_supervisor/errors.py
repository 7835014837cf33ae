"""Errors of fetching releases and running nodes, each with a stable code."""

from typing import Literal

Kind = Literal["transient", "rejected", "invariant"]


class ProcessSupervisorError(Exception):
    """An error with a stable code, what failed, why, and what a person can do.

    `kind` says how to react. `transient`: retry with backoff. `rejected`: refuse this release or this setting.
    `invariant`: stop everything and delete nothing. A download is `rejected` only if the content arrived complete and
    contradicts the chain. Any other fault of a download says nothing about the release, since its path is not
    authenticated.
    """

    def __init__(self, *, code: str, what: str, why: str, action: str = "", kind: Kind = "transient") -> None:
        super().__init__(code, what, why, action)
        self.code = code
        self.what = what
        self.why = why
        self.action = action
        self.kind: Kind = kind

    def __str__(self) -> str:
        text = f"{self.code}: {self.what}: {self.why}"
        return f"{text}. {self.action}" if self.action else text


CODES: dict[str, str] = {
    "ARCHIVE_CORRUPT": "the archive is truncated or is not a tar or tar.gz file",
    "ARCHIVE_DUPLICATE_MEMBER": "the archive holds two members of the same name",
    "ARCHIVE_MEMBER_MISSING": "the archive lacks a file that every release has",
    "ARCHIVE_MEMBER_REFUSED": "the archive holds a link, a device or another member that is not a plain file",
    "ARCHIVE_PATH_REFUSED": "a member's path is absolute, leaves the folder or is not allowed in a release",
    "ARCHIVE_TOO_LARGE": "the archive unpacks to more bytes or members than the limits allow",
    "CONTAINER_DATA_IN_USE": "another container runs with the node's volume or data folder",
    "CONTAINER_DEVICE_MISSING": "a device that the node's container needs is not on this host",
    "CONTAINER_ENGINE_ERROR": "the container engine refused a request",
    "CONTAINER_ENGINE_UNREACHABLE": "the container engine does not answer",
    "CONTAINER_IMAGE_CHANGED": "the container image is not the one that was resolved first",
    "CONTAINER_IMAGE_FOREIGN": "the container image is for another architecture or system than this host's",
    "CONTAINER_IMAGE_MISSING": "the container image is neither here nor to be had from its source",
    "CONTAINER_IMAGE_UNMEASURED": "the container image carries no release files that could be measured",
    "DATA_LOCK_INVALID": "the data folder's lock file cannot be used as a lock",
    "CONTAINER_MOUNT_MISSING": "a folder or volume that the node's container needs is not on this host",
    "CONTAINER_NAME_TAKEN": "a container that is not this agent's has the name that the node's container is to have",
    "CONTAINER_REGISTRY_BUSY": "the image registry asks to come back later",
    "CONTAINER_REGISTRY_CREDENTIALS_UNREADABLE": "the credentials for an image registry cannot be read",
    "CONTAINER_REGISTRY_DENIED": "the image registry wants credentials, or others than it was given",
    "CONTAINER_REGISTRY_UNREACHABLE": "the image registry cannot be reached by the engine",
    "CONTAINER_SIGNED_ENCLAVE_MISSING": "the container image has no signed enclave where the settings say it lies",
    "DATA_LOCK_HELD": "another process works on the node's data",
    "DOWNLOAD_ADDRESS_REFUSED": "the source leads to a private, loopback or link-local address",
    "DOWNLOAD_CAR_INVALID": "a gateway's CAR is none, or does not prove the file that the CID names",
    "DOWNLOAD_DEADLINE": "the download took longer than the limits allow",
    "DOWNLOAD_DIGEST_MISMATCH": "what was received is not what the digest or CID names",
    "DOWNLOAD_FILE_URL_REFUSED": "a file:// source is not allowed by the settings",
    "DOWNLOAD_HTTP_STATUS": "the server answered with an error status",
    "DOWNLOAD_LAYOUT_UNKNOWN": "the bytes that a gateway gave are not the CID's in any known layout of its tree",
    "DOWNLOAD_REDIRECT_REFUSED": "the server redirects too often, to another scheme or from https to http",
    "DOWNLOAD_SOURCES_FAILED": "no source gave a good artefact; each one's reason is listed",
    "DOWNLOAD_SOURCE_UNSUPPORTED": "the source is neither a usable URL nor an image reference nor a CID with a gateway",
    "DOWNLOAD_TOO_LARGE": "the artefact is larger than the limits allow",
    "DOWNLOAD_TRUNCATED": "the connection ended before the whole artefact was received",
    "DOWNLOAD_UNREACHABLE": "the server cannot be reached or broke the connection",
    "NODE_ALREADY_RUNNING": "a node of this name runs already, started with another command",
    "NODE_NOT_ADOPTABLE": "a node that runs already cannot be taken over as it is",
    "NODE_NOT_WATCHED": "whether a node runs cannot be found out for now",
    "NODE_RECORD_INVALID": "a node's record cannot be decoded",
    "NODE_START_FAILED": "the node's program could not be started",
    "NODE_STOP_FAILED": "processes of the node are still there after they were killed",
    "PORT_TAKEN": "a port that the node needs is in use",
    "STAGING_BUSY": "another process is staging the same release",
    "STAGING_DISK_FULL": "there is not enough free space for the artefact",
    "STAGING_DISK_ERROR": "the slots folder cannot be written",
    "STAGING_ENCLAVE_ID_MISMATCH": "the artefact measures to another enclave id than the signed one",
    "STAGING_REQUEST_INVALID": "the release to stage has a malformed enclave id or no usable source",
}
