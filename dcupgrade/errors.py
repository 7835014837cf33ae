"""Errors of the agent, each under a stable code; ``dcupgrade explain CODE`` tells what a code means."""

from dataclasses import dataclass
from typing import Literal

from .conditions import HALTED_CODES, REASON_CODES

Kind = Literal["transient", "rejected", "invariant"]

OTHERS = frozenset({"VAULT_REPLACED"})
"""Conditions whose code another package raises and explains."""

CODES: dict[str, str] = {
    # settings and command line
    "NO_JOURNAL": "no agent ever ran with these settings, so there is no journal to read",
    "NO_RELEASE_SEEN": "the agent has not yet seen a release on the chain",
    "COMMAND_EXPIRED": "an operator command waited for too long and was not carried out",
    "COMMAND_CANCELLED": "an operator command was cancelled before the agent took it up",
    "COMMAND_WAITS": "the agent runs, and has not taken up an operator command yet",
    "COMMAND_NOT_WAITING": "there is no operator command of that number that waits",
    "COMMAND_INVALID": "an operator command in the journal means nothing to this version",
    "RELEASE_QUARANTINED": "the release failed before and is not tried again before `dcupgrade retry`",
    "AGENT_NOT_RUNNING": "the command needs the running agent, and nobody answers on its address",
    # the release manager's tools (publish.py, release_cli.py)
    "RELEASE_KEY_UNREADABLE": "a signing key file is missing or is neither a 32-byte seed nor a PKCS#8 ed25519 key",
    "RELEASE_PASSPHRASE_NEEDED": "the signing key is encrypted, and there is no terminal to ask for its passphrase",
    "RELEASE_NETWORK_KEY_BAD": "a public network key is not one, or fewer are given than must have signed",
    "RELEASE_BASE_UNREADABLE": "the base image of a release is no archive of one image",
    "RELEASE_BUILD_FAILED": "a release cannot be built from the given sources",
    "RELEASE_ID_MALFORMED": "an enclave id is not 64 lower-case hexadecimal digits",
    "RELEASE_SIGSTRUCT_UNREADABLE": "a SIGSTRUCT file from which the enclave id was to be taken cannot be used",
    "RELEASE_SIGNATURE_BAD": "a network signature does not verify over the enclave id with the given network keys",
    "RELEASE_ALREADY_PUBLISHED": "the chain already names this very release as the one to run",
    "PUBLISH_NOT_NEWER": "the enclave id was added to the chain no later than the one it is to replace",
    "RELEASE_NOT_LISTED": "the enclave id is not in the chain's list, so there is nothing to revoke",
    "RELEASE_FIELD_BAD": "a field of a release is empty, too long or holds characters that no client would accept",
    "PUBLISH_CHAIN_UNREACHABLE": "the chain's RPC endpoint cannot be reached, broke off or gave no usable answer",
    "PUBLISH_EXTRA_MISSING": "the packages that write to the chain are not installed on this machine",
    "PUBLISH_PALLET_MISSING": "the chain has no pallet with the DCNode calls and storage",
    "PUBLISH_CALL_UNKNOWN_FIELD": "a call of the pallet has an argument that this version does not know how to fill",
    "PUBLISH_NO_KEY": "no account was given that could sign the extrinsic",
    "PUBLISH_EXTRINSIC_REFUSED": "the chain did not take the extrinsic into its pool",
    "PUBLISH_DISPATCH_FAILED": "the extrinsic was included, but the call inside it failed",
    "PUBLISH_NOT_IN_STORAGE": "the calls succeeded, yet the finalized state does not show what they were to do",
    "SETTINGS_UNREADABLE": "the settings file cannot be read or is not TOML",
    "SETTINGS_INVALID": "the settings file has mistakes; all of them are listed",
    "SETTINGS_EXIST": "there is a file already where `dcupgrade init` would write one",
    "INIT_ANSWER_MISSING": "`dcupgrade init` lacks an answer, and there is no terminal to ask on",
    "UNKNOWN_CODE": "no part of the program knows the code that was asked about",
    "CHECKPOINT_UNREADABLE": "the file with the pinned checkpoint cannot be read",
    "WEBHOOK_SECRET_UNREADABLE": "the secret of a webhook receiver cannot be read, or is empty",
    # doctor.py: findings of `check`
    "FOLDER_OPEN_TO_OTHERS": "a folder with keys, tokens or the journal can be read by other users",
    "HTTP_OPEN_TO_OTHERS": "the status page listens on an address that other hosts can reach",
    "OTHER_MANAGER_RUNNING": "another manager or upgrader runs on this machine",
    "DISK_SPACE_LOW": "less space is free than the settings want to remain before an upgrade",
    "FINALITY_LAGS": "the endpoint's finalized block is old or far behind its best block",
    "CLOCK_SKEWED": "the host's clock is behind the chain's time",
    "ENDPOINT_WITHOUT_PROOFS": "an endpoint lacks the methods that mode `proven` needs",
    "TEE_SIMULATED": "the vault's TEE is simulated, so nothing protects the keys from this host",
    "VAULT_MEASURED_UNSAFE": "the vault was measured with an unsafe switch on",
    # the agent
    "AGENT_ALREADY_RUNNING": "another agent works on this state folder",
    "AGENT_STATE_UNUSABLE": "the agent's state folder cannot be created or written",
    "MACHINE_NO_TRANSITION": "the upgrade machine met an event that its table does not know in that state",
    "JOURNAL_BUSY": "as many calls wait for the journal as it lets wait",
    "JOURNAL_CORRUPT": "the journal is damaged, or is not a journal",
    "JOURNAL_ROW_DAMAGED": "a row of the journal's history or queue is not what was written",
    "JOURNAL_WORK_DIFFERS": "the stored state wants other work than was stored with it",
    "JOURNAL_TOO_NEW": "the journal was written by a newer version of the program",
    "JOURNAL_UNREADABLE": "the journal's file cannot be opened",
    "JOURNAL_WRITE_FAILED": "the journal cannot be written; the agent does nothing that is not stored in it",
    "UNEXPECTED": "the program met an error that it does not know; the log has the details",
    "VAULT_START_FAILED": "the vault's process could not be started",
    "VAULT_ENDED": "the vault's process ended; it is started again",
    "VAULT_SILENT": "the vault's process lives but does not answer; it is ended and started again",
    "DELIVERY_DEADLINE": "the new version did not confirm the keys in time",
    "DELIVERY_REFUSED": "the vault or the new version refused the handover of the keys",
    "CANARY_FAILED": "the new version cannot decrypt the old one's data",
    "CONTAINER_PROGRAM_MISSING": "the program that the node's container would run is not in the new version's image",
    "CONTAINER_TEMPLATE_UNREADABLE": "the stored settings of the node's container cannot be used",
    "NODE_UNHEALTHY": "the node's own health report says that it failed",
    "NODE_CRASH_LOOP": "the running version ends again and again soon after its start",
    "NODE_NOT_READY": "the node's health report says that it does not serve",
    "NODE_ANOTHER_VERSION": "another version than the one started answers on the node's port",
    "NODE_NOT_KEPT": "the node is not started or restarted in this state of the machine",
    "NODE_STILL_RUNS": "files of a version that still runs were to be removed",
    "ANOTHER_NODE_RUNS": "another version still runs on the same data",
    "COMMIT_NOT_ACKNOWLEDGED": "the new version has not yet acknowledged the commit",
    "RUNNING_REVOKED": "the network has withdrawn its signature from the running version; it continues to serve",
    "FIRST_INSTALL_REFUSED": "nothing runs here, and a first install is not allowed or not safe",
    # answers of the status page and API
    "HTTP_HOST_REFUSED": "a request names the status page by a host name that it does not answer to",
    "HTTP_PORT_TAKEN": "another program listens where the status page is to be served",
    "HTTP_TOKEN_REFUSED": "an action came without the operator's token, or with a wrong one",
    "HTTP_REFUSED": "a request to the status page or API cannot be served as it is",
    "HTTP_BUSY": "as many readers follow the agent's events, or wait for its history, as it serves at once",
    # why an upgrade does not begin yet
    "GATE_HELD": "an operator holds upgrades",
    "GATE_WINDOW_SHUT": "it is outside the maintenance windows",
    "GATE_NOT_MY_TURN": "this node's turn in the staggering has not come",
    "GATE_APPROVAL_MISSING": "the release waits for an operator's approval",
    "FLEET_FULL": "as many nodes of the fleet upgrade already as may at once",
    "FLEET_HALTED": "the fleet was stopped, by an operator or by too many reverts of the release",
    "FLEET_UNREACHABLE": "the engine that counts the fleet's upgrades cannot be asked",
    "GATE_PREFLIGHT": "a check of the host before the upgrade failed",
    **{code: text for code, text in HALTED_CODES.items() if code not in OTHERS},
    **REASON_CODES,
}


class DcupgradeError(Exception):
    """What failed, why, and what to do, under a stable code.

    ``kind`` says who must act: ``transient`` (retry with backoff), ``rejected`` (this input is refused), ``invariant``
    (stop and keep everything).
    """

    def __init__(self, *, code: str, what: str, why: str, action: str = "", kind: Kind = "rejected") -> None:
        self.code = code
        self.what = what
        self.why = why
        self.action = action
        self.kind: Kind = kind
        end = "" if why.endswith("\n") else " " if why.endswith((".", "?", "!")) else ". "
        super().__init__(f"{code}: {what}: {why}{end}{action}".rstrip(" "))


def why_of(error: BaseException) -> str:
    """Why something failed, for a reader: an error of the operating system without its number and its path."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


@dataclass(frozen=True, slots=True)
class Failure:
    """What an error of any package says about itself."""

    code: str
    kind: str
    detail: str


def failure_of(error: BaseException) -> Failure:
    """Code, kind and text of an error; one without a code is UNEXPECTED and transient."""
    code, kind = getattr(error, "code", None), getattr(error, "kind", None)
    if isinstance(code, str) and isinstance(kind, str):
        return Failure(code, kind, str(error))
    return Failure("UNEXPECTED", "transient", f"{type(error).__name__}: {error}")
