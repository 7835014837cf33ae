package handover

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"

	"handover/sgx"
)

const (
	transcriptTag = "dcupgrade handover v2 transcript\x00"
	challengeTag  = "dcupgrade handover v2 challenge by holder\x00"
	requestTag    = "dcupgrade handover v2 request by requester\x00"
	deliveryTag   = "dcupgrade handover v2 delivery by holder\x00"
	receivedTag   = "dcupgrade handover v2 received by requester\x00"
	durableTag    = "dcupgrade handover v2 durable by requester\x00"
)

// transcript is the running hash over the conversation. Its methods return the next state and leave the old one as it
// is, so that a repeated message is judged like the first.
type transcript [sha256.Size]byte

func (t transcript) add(label string, value []byte) transcript {
	data := make([]byte, 0, len(t)+1+len(label)+4+len(value))
	data = append(data, t[:]...)
	data = append(data, byte(len(label)))
	data = append(data, label...)
	data = binary.BigEndian.AppendUint32(data, uint32(len(value)))
	return sha256.Sum256(append(data, value...))
}

// reportData returns REPORTDATA for the message and role of a tag at this point of the conversation.
func (t transcript) reportData(tag string) [sgx.ReportDataSize]byte {
	return sha512.Sum512(append([]byte(tag), t[:]...))
}

// opening is what both sides know after hello and challenge.
type opening struct {
	versions       []int
	genesis        [genesisBytes]byte
	requesterNonce []byte
	requester      sgx.TargetInfo
	session        []byte
	holderNonce    []byte
	holder         sgx.EnclaveID
}

// transcript returns T0.
func (o opening) transcript() transcript {
	versions := make([]byte, len(o.versions))
	for i, version := range o.versions {
		versions[i] = byte(version)
	}
	return transcript(sha256.Sum256([]byte(transcriptTag))).
		add("versions", versions).
		add("version", []byte{protocolVersion}).
		add("genesis", o.genesis[:]).
		add("requester nonce", o.requesterNonce).
		add("requester target info", o.requester.Encode()).
		add("session", o.session).
		add("holder nonce", o.holderNonce).
		add("requester id", o.requester.MRENCLAVE[:]).
		add("holder id", o.holder[:])
}

// addRequest makes T1 of T0.
func (t transcript) addRequest(publicKey []byte, wanted string) transcript {
	return t.add("kem public key", publicKey).add("wanted key set", []byte(wanted))
}

// addCiphertext makes T2 of T1.
func (t transcript) addCiphertext(ciphertext []byte) transcript {
	return t.add("ciphertext", ciphertext)
}

// addDurable makes T3 of T2.
func (t transcript) addDurable(keySetID string, canary bool) transcript {
	opened := []byte{0}
	if canary {
		opened[0] = 1
	}
	return t.add("durable key set", []byte(keySetID)).add("canary opened", opened)
}

// checkReportData refuses a report that does not bind this conversation, role and message.
func checkReportData(report sgx.Report, expected [sgx.ReportDataSize]byte, what string) error {
	if subtle.ConstantTimeCompare(report.ReportData[:], expected[:]) != 1 {
		return rejected(CodeReportDataMismatch, "the "+what+" was refused",
			"its report belongs to another conversation, role or message")
	}
	return nil
}

// checkSameEnclave refuses a report of another enclave than the one that began the session.
func checkSameEnclave(report, first sgx.Report, what string) error {
	if !report.SameEnclave(first) {
		return rejected(CodePeerChanged, "the "+what+" was refused",
			"its report is not from the enclave that began the session")
	}
	return nil
}
