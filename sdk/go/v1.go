package handover

import (
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"handover/internal/nacl"
	"handover/sgx"
)

// Handover v1, the protocol of nodes in the field, with stricter checks: a challenge is used once and expires, reports of
// debug or uninitialised enclaves are refused, and the holder of the answer must be the enclave that gave the challenge.
const (
	// oeHeader is Open Enclave's report header: version 1, type 1 (SGX local), size 432.
	oeHeader         = "\x01\x00\x00\x00\x01\x00\x00\x00\xb0\x01\x00\x00\x00\x00\x00\x00"
	v1ReportBytes    = len(oeHeader) + sgx.ReportSize
	v1AnswerBytesMax = 2 * KeySetBytesMax
	challengeTTL     = 60 * time.Second
	challengeRenewed = 30 * time.Second
	// challengedMax bounds the enclave ids that have a challenge.
	challengedMax = 1 << 14
)

func encodeReportV1(report sgx.Report) []byte { return append([]byte(oeHeader), report.Encode()...) }

func decodeReportV1(data []byte) (sgx.Report, error) {
	if len(data) != v1ReportBytes || string(data[:len(oeHeader)]) != oeHeader {
		return sgx.Report{}, v1Invalid("report", fmt.Sprintf("%d bytes are not an Open Enclave local report", len(data)))
	}
	report, err := sgx.DecodeReport(data[len(oeHeader):])
	if err != nil {
		return report, v1Invalid("report", err.Error())
	}
	return report, nil
}

func v1Invalid(part, why string) *Error {
	return rejected(CodeV1MessageInvalid, "v1 message, "+part, why)
}

// v1Secret is the query of GET /secret.
type v1Secret struct {
	publicKey ed25519.PublicKey
	signature []byte
	report    []byte
}

// v1Answer is the JSON of its answer; what else stands in it is ignored, as by programs in the field.
type v1Answer struct {
	EnclaveSignature []byte
	EncryptSecret    []byte
	Pubkey           []byte
	LocalReport      []byte
}

// requesterV1 is one try of a requester over v1.
type requesterV1 struct {
	node      Node
	signature []byte // over its own id; the field takes one
	seed      []byte
	holder    sgx.EnclaveID
}

func newRequesterV1(node Node, signature []byte) *requesterV1 {
	return &requesterV1{node: node, signature: signature, seed: node.crypto().random(ed25519.SeedSize)}
}

// hello is the report of GET /teerandom: an untargeted one, which only says whom to target.
func (r *requesterV1) hello() ([]byte, error) {
	report, err := SelfReport(r.node.TEE)
	return encodeReportV1(report), err
}

// onChallenge answers the holder's report, whose REPORTDATA is the challenge.
func (r *requesterV1) onChallenge(challenge []byte) (v1Secret, error) {
	report, err := decodeReportV1(challenge)
	if err != nil {
		return v1Secret{}, err
	}
	if err := r.node.TEE.Verify(report); err != nil {
		return v1Secret{}, err
	}
	r.holder = report.MRENCLAVE
	key := ed25519.NewKeyFromSeed(r.seed)
	data := [sgx.ReportDataSize]byte(ed25519.Sign(key, report.ReportData[:]))
	own, err := r.node.TEE.Report(report.TargetInfo(), data)
	if err != nil {
		return v1Secret{}, err
	}
	return v1Secret{key.Public().(ed25519.PublicKey), r.signature, encodeReportV1(own)}, nil
}

// open verifies the holder before it decrypts its answer.
func (r *requesterV1) open(body []byte) (*KeySet, error) {
	defer clear(r.seed)
	var answer v1Answer
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, v1Invalid("answer", "it is not JSON with base64 values")
	}
	report, err := decodeReportV1(answer.LocalReport)
	if err != nil {
		return nil, err
	}
	if err := r.node.verifyPeer(report, [][]byte{answer.EnclaveSignature}); err != nil {
		return nil, err
	}
	if report.MRENCLAVE != r.holder {
		return nil, rejected(CodeV1HolderChanged, "a v1 answer was refused",
			fmt.Sprintf("it comes from %s, the challenge from %s", report.MRENCLAVE, r.holder))
	}
	if !verifyV1(answer.Pubkey, answer.EncryptSecret, report) {
		return nil, rejected(CodeV1SignatureBad, "a v1 answer was refused",
			"REPORTDATA is not its key's signature over the ciphertext")
	}
	if len(answer.EncryptSecret) > nacl.Overhead+KeySetBytesMax {
		return nil, v1Invalid("EncryptSecret", fmt.Sprintf("it has %d bytes", len(answer.EncryptSecret)))
	}
	plaintext, err := nacl.Open(r.seed, answer.EncryptSecret)
	if err != nil {
		return nil, rejected(CodeV1DecryptFailed, "a v1 answer was refused",
			"the ciphertext does not open with the key of this session")
	}
	defer clear(plaintext)
	return NewKeySet(plaintext)
}

// verifyV1 tells whether a report's REPORTDATA is a key's signature over a message.
func verifyV1(key, message []byte, report sgx.Report) bool {
	return len(key) == ed25519.PublicKeySize && ed25519.Verify(key, message, report.ReportData[:])
}

// challengeV1 is a challenge that waits for its answer.
type challengeV1 struct {
	digest [sha512.Size]byte
	made   time.Time
}

// exchangeV1 is the holder's side over v1.
//
// A claimed enclave id has one challenge at a time, whoever asks for it and how often: polling in an enclave's name takes
// nothing from that enclave. It is replaced after 30 s, ends after 60 s, and is consumed by a requester that proves
// itself. When too many ids have one, the oldest gives way.
type exchangeV1 struct {
	node Node
	own  sgx.EnclaveID
	now  func() time.Time
	max  int

	mu         sync.Mutex
	challenges table[sgx.EnclaveID, []challengeV1] // the newest of an id last
}

func newExchangeV1(node Node) (*exchangeV1, error) {
	target, err := node.TEE.TargetInfo()
	if err != nil {
		return nil, err
	}
	return &exchangeV1{
		node: node, own: target.MRENCLAVE, now: time.Now, max: challengedMax,
		challenges: newTable[sgx.EnclaveID, []challengeV1](),
	}, nil
}

// onHello returns a report targeted at the caller whose REPORTDATA is the challenge.
func (e *exchangeV1) onHello(raw []byte) ([]byte, error) {
	caller, err := decodeReportV1(raw)
	if err != nil {
		return nil, err
	}
	report, err := e.node.TEE.Report(caller.TargetInfo(), e.challengeFor(caller.MRENCLAVE))
	return encodeReportV1(report), err
}

func (e *exchangeV1) challengeFor(id sgx.EnclaveID) [sha512.Size]byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	now, live := e.now(), e.live(id)
	if n := len(live); n > 0 && now.Before(live[n-1].made.Add(challengeRenewed)) {
		return live[n-1].digest
	}
	fresh := challengeV1{sha512.Sum512(withoutLeadingZeros(e.node.crypto().random(16))), now}
	e.challenges.take(id)
	for oldest := range e.challenges.fromOldest {
		if e.challenges.len() < e.max {
			break
		}
		e.challenges.take(oldest)
	}
	e.challenges.put(id, append(live, fresh))
	return fresh.digest
}

// live returns the challenges of an id that have not ended. The caller holds the lock.
func (e *exchangeV1) live(id sgx.EnclaveID) []challengeV1 {
	known, _ := e.challenges.get(id)
	return slices.DeleteFunc(slices.Clone(known), func(c challengeV1) bool {
		return !e.now().Before(c.made.Add(challengeTTL))
	})
}

// onSecret verifies a requester and consumes its challenge, whatever it is then told.
func (e *exchangeV1) onSecret(secret v1Secret) (sgx.Report, error) {
	report, err := decodeReportV1(secret.report)
	if err != nil {
		return report, err
	}
	if err := e.node.verifyPeer(report, [][]byte{secret.signature}); err != nil {
		return report, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	live := e.live(report.MRENCLAVE)
	for i, c := range live {
		if verifyV1(secret.publicKey, c.digest[:], report) {
			e.challenges.set(report.MRENCLAVE, slices.Delete(live, i, i+1))
			return report, nil
		}
	}
	// As the original answers a challenge that it does not know, for example after a restart: the requester asks again.
	return report, &Error{
		CodeV1ChallengeUnknown, "a v1 request was refused", "it answers no live challenge: expired, used, or another's",
		"Begin again with /teerandom.", Transient,
	}
}

// answer encrypts a key set to a verified requester.
func (e *exchangeV1) answer(secret v1Secret, requester sgx.Report, keys *KeySet) ([]byte, error) {
	random := e.node.crypto().random
	sealed, err := nacl.Seal(secret.publicKey, keys.Bytes(),
		(*[nacl.NonceSize]byte)(random(nacl.NonceSize)), (*[nacl.KeySize]byte)(random(nacl.KeySize)))
	if err != nil {
		return nil, rejected(CodeV1KeyInvalid, "a v1 request was refused", err.Error())
	}
	own := ed25519.NewKeyFromSeed(random(ed25519.SeedSize))
	report, err := e.node.TEE.Report(requester.TargetInfo(), [sgx.ReportDataSize]byte(ed25519.Sign(own, sealed)))
	if err != nil {
		return nil, err
	}
	return json.Marshal(v1Answer{
		EnclaveSignature: e.signature(requester.MRENCLAVE, secret.signature), EncryptSecret: sealed, Pubkey: own.Public().(ed25519.PublicKey),
		LocalReport: encodeReportV1(report),
	})
}

// signature returns this side's signature by the network key that signed the requester too: that key it knows. v1 has
// room for one signature, and a network that changes its key has two.
func (e *exchangeV1) signature(requester sgx.EnclaveID, theirs []byte) []byte {
	own := e.node.NetworkSignatures
	for _, key := range e.node.Policy.Network.keys {
		if len(own) > 1 && signedBy(key, requester, [][]byte{theirs}) {
			for _, signature := range own {
				if signedBy(key, e.own, [][]byte{signature}) {
					return signature
				}
			}
		}
	}
	return own[0]
}

// withoutLeadingZeros writes a number as v1 does.
func withoutLeadingZeros(number []byte) []byte {
	for len(number) > 0 && number[0] == 0 {
		number = number[1:]
	}
	return number
}
