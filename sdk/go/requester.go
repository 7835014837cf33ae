package handover

import (
	"crypto/hpke"
	"crypto/subtle"

	"handover/sgx"
)

// requester is one try to get a key set: bytes of messages in, bytes of messages out. A step that failed ends the try.
type requester struct {
	node       Node
	wanted     string
	nonce      []byte
	target     sgx.TargetInfo
	transcript transcript
	session    []byte
	holder     sgx.Report
	privateKey hpke.PrivateKey
	receiptKey []byte
	keySetID   string
}

func newRequester(node Node, wanted string) (*requester, error) {
	target, err := node.TEE.TargetInfo()
	if err != nil {
		return nil, err
	}
	return &requester{node: node, wanted: wanted, target: target, nonce: node.crypto().random(nonceBytes)}, nil
}

func (r *requester) hello() []byte {
	return encode(helloMessage{[]int{protocolVersion}, r.node.Policy.Genesis[:], r.nonce, r.target.Encode()})
}

// onChallenge verifies the holder's challenge and returns the request.
func (r *requester) onChallenge(body []byte) ([]byte, error) {
	m, err := decodeChallenge(body)
	if err != nil {
		return nil, err
	}
	if m.Version != protocolVersion {
		return nil, rejected(CodeVersionUnsupported, "the challenge was refused", "the holder chose another version")
	}
	holder, err := decodeReport(m.Report, "challenge")
	if err != nil {
		return nil, err
	}
	if err := r.node.verifyPeer(holder, m.NetworkSignatures); err != nil {
		return nil, err
	}
	state := opening{
		[]int{protocolVersion}, r.node.Policy.Genesis, r.nonce, r.target, m.Session, m.Nonce, holder.MRENCLAVE,
	}.transcript()
	if err := checkReportData(holder, state.reportData(challengeTag), "challenge"); err != nil {
		return nil, err
	}
	if r.privateKey, err = r.node.crypto().kemGenerate(); err != nil {
		return nil, err
	}
	publicKey := r.privateKey.PublicKey().Bytes()
	r.session, r.holder, r.transcript = m.Session, holder, state.addRequest(publicKey, r.wanted)
	report, err := r.node.TEE.Report(holder.TargetInfo(), r.transcript.reportData(requestTag))
	if err != nil {
		return nil, err
	}
	return encode(requestMessage{r.session, publicKey, r.wanted, report.Encode(), r.node.NetworkSignatures}), nil
}

// onDelivery verifies and opens the delivery. The caller wipes the key set after use.
func (r *requester) onDelivery(body []byte) (*KeySet, error) {
	m, err := decodeDelivery(body)
	if err != nil {
		return nil, err
	}
	if err := r.checkSession(m.Session, "delivery"); err != nil {
		return nil, err
	}
	report, err := decodeReport(m.Report, "delivery")
	if err != nil {
		return nil, err
	}
	if err := r.node.TEE.Verify(report); err != nil {
		return nil, err
	}
	if err := checkSameEnclave(report, r.holder, "delivery"); err != nil {
		return nil, err
	}
	state := r.transcript.addCiphertext(m.Ciphertext)
	if err := checkReportData(report, state.reportData(deliveryTag), "delivery"); err != nil {
		return nil, err
	}
	plaintext, err := kemOpen(r.privateKey, r.transcript[:], m.Ciphertext)
	if err != nil {
		return nil, err
	}
	defer clear(plaintext)
	r.privateKey = nil
	keys, err := NewKeySet(plaintext[receiptKeyBytes:])
	if err != nil {
		return nil, err
	}
	if r.wanted != "" && r.wanted != keys.ID() {
		keys.Wipe()
		refusal := rejected(CodeKeySetMismatch, "the delivered key set was refused",
			"expected "+r.wanted+", found "+keys.ID())
		refusal.Action = "Look for the vault or node that holds the expected key set."
		return nil, refusal
	}
	r.transcript, r.keySetID = state, keys.ID()
	r.receiptKey = append(r.receiptKey, plaintext[:receiptKeyBytes]...)
	return keys, nil
}

// received returns the receipt: a MAC under the key that came inside the delivery.
func (r *requester) received() []byte {
	return encode(receivedMessage{r.session, receipt(r.receiptKey, r.transcript)})
}

// durable returns the attested word that the key set was sealed, read back and unsealed.
func (r *requester) durable(canary bool) ([]byte, error) {
	data := r.transcript.addDurable(r.keySetID, canary).reportData(durableTag)
	report, err := r.node.TEE.Report(r.holder.TargetInfo(), data)
	if err != nil {
		return nil, err
	}
	return encode(durableMessage{r.session, r.keySetID, canary, report.Encode()}), nil
}

// acknowledged verifies the answer to received or durable: it only says that the message arrived.
func (r *requester) acknowledged(body []byte, state string) error {
	m, err := decodeAcknowledgement(body)
	if err != nil {
		return err
	}
	if m.State != state {
		return malformed("acknowledgement", "expected "+state+", found "+m.State)
	}
	return r.checkSession(m.Session, "acknowledgement")
}

func (r *requester) checkSession(session []byte, what string) error {
	if subtle.ConstantTimeCompare(session, r.session) != 1 {
		return rejected(CodeSessionUnknown, "the "+what+" was refused", "it names another session")
	}
	return nil
}

// forget wipes what is secret in the try.
func (r *requester) forget() { clear(r.receiptKey) }
