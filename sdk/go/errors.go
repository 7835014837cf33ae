package handover

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// A Kind says who must act on an error.
type Kind string

const (
	// Transient means: ask again later.
	Transient Kind = "transient"
	// Rejected means: this request is refused, and the same bytes cannot succeed.
	Rejected Kind = "rejected"
	// Invariant means: stop and keep everything; a person must look.
	Invariant Kind = "invariant"
)

// A Code names a condition. Codes are part of the protocol and do not change their meaning.
type Code string

// Codes that this package raises. A peer may answer with others, such as RELEASE_REVOKED.
const (
	CodeMessageMalformed    Code = "HANDOVER_MESSAGE_MALFORMED"
	CodeMessageTooLarge     Code = "HANDOVER_MESSAGE_TOO_LARGE"
	CodeVersionUnsupported  Code = "HANDOVER_VERSION_UNSUPPORTED"
	CodeGenesisMismatch     Code = "HANDOVER_GENESIS_MISMATCH"
	CodeSessionUnknown      Code = "HANDOVER_SESSION_UNKNOWN"
	CodeOutOfOrder          Code = "HANDOVER_OUT_OF_ORDER"
	CodeReportDataMismatch  Code = "HANDOVER_REPORTDATA_MISMATCH"
	CodePeerChanged         Code = "HANDOVER_PEER_CHANGED"
	CodeCiphertextBad       Code = "HANDOVER_CIPHERTEXT_BAD"
	CodeReceiptBad          Code = "HANDOVER_RECEIPT_BAD"
	CodeKeySetMismatch      Code = "HANDOVER_KEY_SET_MISMATCH"
	CodePeerUnreachable     Code = "HANDOVER_PEER_UNREACHABLE"
	CodeAnswerMalformed     Code = "HANDOVER_ANSWER_MALFORMED"
	CodeNothingHeld         Code = "HANDOVER_NOTHING_HELD"
	CodePermitDurable       Code = "PERMIT_ALREADY_DURABLE"
	CodeKeySetSize          Code = "KEY_SET_SIZE_INVALID"
	CodeKeySetWiped         Code = "KEY_SET_WIPED"
	CodePeerNotInit         Code = "PEER_NOT_INIT"
	CodePeerDebug           Code = "PEER_DEBUG"
	CodePeerAttributes      Code = "PEER_ATTRIBUTES"
	CodePeerXFRM            Code = "PEER_XFRM"
	CodePeerMiscSelect      Code = "PEER_MISCSELECT"
	CodePeerCET             Code = "PEER_CET_ATTRIBUTES"
	CodePeerConfig          Code = "PEER_CONFIG"
	CodePeerISVSVN          Code = "PEER_ISVSVN_TOO_LOW"
	CodePeerNotUpgrader     Code = "PEER_NOT_UPGRADER"
	CodeUpgraderUnlisted    Code = "HANDOVER_UPGRADER_UNLISTED"
	CodeReportMACBad        Code = "REPORT_MAC_BAD"
	CodeTEEMissing          Code = "TEE_MISSING"
	CodeTEEGone             Code = "TEE_GONE"
	CodeTEEProtocol         Code = "TEE_PROTOCOL"
	CodeTEEKeyRefused       Code = "TEE_KEY_REFUSED"
	CodeSealKeyZero         Code = "SEAL_KEY_ZERO"
	CodeGramineInterface    Code = "GRAMINE_INTERFACE"
	CodeMultibaseInvalid    Code = "MULTIBASE_INVALID"
	CodeNetworkKeysInvalid  Code = "NETWORK_KEYS_INVALID"
	CodeSignatureMissing    Code = "NETWORK_SIGNATURE_MISSING"
	CodeSignatureBad        Code = "NETWORK_SIGNATURE_BAD"
	CodeSignatureThreshold  Code = "NETWORK_SIGNATURE_THRESHOLD"
	CodeStoreSealKeyUnsafe  Code = "STORE_SEAL_KEY_UNSAFE"
	CodeStoreFormatInvalid  Code = "STORE_FORMAT_INVALID"
	CodeStoreOtherEnclave   Code = "STORE_OTHER_ENCLAVE"
	CodeStoreUnsealFailed   Code = "STORE_UNSEAL_FAILED"
	CodeStoreMissing        Code = "STORE_MISSING"
	CodeStoreReadFailed     Code = "STORE_READ_FAILED"
	CodeStoreWriteFailed    Code = "STORE_WRITE_FAILED"
	CodeStoreReadBackFailed Code = "STORE_READ_BACK_FAILED"
	CodeV1MessageInvalid    Code = "V1_MESSAGE_INVALID"
	CodeV1KeyInvalid        Code = "V1_KEY_INVALID"
	CodeV1DecryptFailed     Code = "V1_DECRYPT_FAILED"
	CodeV1HolderChanged     Code = "V1_HOLDER_CHANGED"
	CodeV1SignatureBad      Code = "V1_SIGNATURE_BAD"
	CodeV1ChallengeUnknown  Code = "V1_CHALLENGE_UNKNOWN"
	CodeV1Refused           Code = "V1_REFUSED"
	codeInternal            Code = "VAULT_INTERNAL"
	codePathUnknown         Code = "VAULT_PATH_UNKNOWN"
	codeRequestTooSlow      Code = "VAULT_REQUEST_TOO_SLOW"
)

// Error is every error of this package: what failed, why, and what to do about it, under a stable code.
//
// Its texts never hold key material and are safe to log. Use [CodeOf] or [errors.As] to look at it.
type Error struct {
	Code   Code   `json:"code"`
	What   string `json:"what"`
	Why    string `json:"why"`
	Action string `json:"action"`
	Kind   Kind   `json:"kind"`
}

// Error returns "CODE: what: why. action".
func (e *Error) Error() string {
	text := string(e.Code) + ": " + e.What + ": " + e.Why
	if e.Action != "" {
		text += ". " + e.Action
	}
	return text
}

// CodeOf returns the code of err, or "" if it is not an [Error].
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

// IsTransient tells whether the same call may succeed later.
func IsTransient(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Kind == Transient
}

func rejected(code Code, what, why string) *Error {
	return &Error{Code: code, What: what, Why: why, Kind: Rejected}
}

// told returns an error as one that a peer may see: of what is not ours it learns nothing.
func told(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{
		Code: codeInternal, What: "the request failed", Why: "an internal error",
		Action: "Look at the log; no key was delivered.", Kind: Invariant,
	}
}

// errorOf returns the refusal that a peer answered with, or nil if the body is not one.
//
// Its texts are cut, and lose what cannot be printed: they go into logs, where a stranger's line break would begin a
// line of its own. A peer cannot say that this side must stop: its "invariant" means no more than a refusal here.
func errorOf(body []byte) *Error {
	value, err := strictObject(body, messageBytesMax, "answer")
	if err != nil {
		return nil
	}
	var texts [5]string
	for i, name := range []string{"code", "what", "why", "action", "kind"} {
		text, ok := value[name].(string)
		if !ok {
			return nil
		}
		texts[i] = printable(text, 500)
	}
	kind := Kind(texts[4])
	if kind == Invariant {
		kind = Rejected
	}
	if !isCode(texts[0]) || kind != Transient && kind != Rejected {
		return nil
	}
	return &Error{Code(texts[0]), texts[1], texts[2], texts[3], kind}
}

func isCode(text string) bool {
	for i, c := range text {
		if !(c >= 'A' && c <= 'Z' || i > 0 && (c >= '0' && c <= '9' || c == '_')) {
			return false
		}
	}
	return len(text) > 0 && len(text) <= 80
}

func printable(text string, limit int) string {
	runes := []rune(text)
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, string(runes[:min(len(runes), limit)]))
}

// errorType names the kind of a foreign error: its text could quote key material.
func errorType(err error) string { return fmt.Sprintf("%T", err) }
