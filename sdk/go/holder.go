package handover

import (
	"context"
	"crypto/subtle"
	"fmt"
	"sync"
	"time"

	"handover/sgx"
)

const (
	// sessionTTL bounds how long a challenge may be answered.
	sessionTTL = 60 * time.Second
	// deliveryTTL is the time in which the vault seals and confirms, or asks again.
	deliveryTTL = 15 * time.Minute
	// sessionsMax is so large that hellos cannot push an exchange out that takes milliseconds: a port that takes
	// 10,000 hellos a second needs more than a second for it. A session is a few hundred bytes.
	sessionsMax = 1 << 14
	// deliveriesMax bounds what verified vaults leave unconfirmed.
	deliveriesMax = 64
)

type sessionID [sessionBytes]byte

// session is an open session of somebody who has proven nothing yet.
type session struct {
	transcript transcript
	requester  sgx.EnclaveID
	expires    time.Time
}

// delivery is a key set on its way to a verified requester.
type delivery struct {
	transcript transcript
	receiptKey []byte
	requester  sgx.Report
	keySetID   string
	expires    time.Time
	received   bool
	durable    bool
}

// verifiedRequest is a request whose sender was verified.
type verifiedRequest struct {
	requestMessage
	report     sgx.Report
	transcript transcript
}

// exchange is the holder's side: open sessions and deliveries under way, oldest first.
//
// No session costs an honest requester its place by what it claims: when the table is full, the oldest unverified one
// gives way.
type exchange struct {
	node Node
	own  sgx.EnclaveID
	now  func() time.Time
	max  int

	mu         sync.Mutex
	sessions   table[sessionID, session]
	deliveries table[sessionID, *delivery]
}

func newExchange(node Node) (*exchange, error) {
	target, err := node.TEE.TargetInfo()
	if err != nil {
		return nil, err
	}
	return &exchange{
		node: node, own: target.MRENCLAVE, now: time.Now, max: sessionsMax,
		sessions: newTable[sessionID, session](), deliveries: newTable[sessionID, *delivery](),
	}, nil
}

// onHello opens a session and returns the challenge, which only the named requester can verify.
func (e *exchange) onHello(body []byte) ([]byte, error) {
	m, err := decodeHello(body)
	if err != nil {
		return nil, err
	}
	if !offers(m.Versions, protocolVersion) {
		return nil, rejected(CodeVersionUnsupported, "the hello was refused",
			fmt.Sprintf("it offers %v, this side speaks %d", m.Versions, protocolVersion))
	}
	genesis := e.node.Policy.Genesis
	if [genesisBytes]byte(m.Genesis) != genesis {
		return nil, rejected(CodeGenesisMismatch, "the hello was refused",
			fmt.Sprintf("expected genesis %x, found %x", genesis, m.Genesis))
	}
	target, err := sgx.DecodeTargetInfo(m.TargetInfo)
	if err != nil {
		return nil, malformed("hello", err.Error())
	}
	id, nonce := e.node.crypto().random(sessionBytes), e.node.crypto().random(nonceBytes)
	state := opening{m.Versions, genesis, m.Nonce, target, id, nonce, e.own}.transcript()
	report, err := e.node.TEE.Report(target, state.reportData(challengeTag))
	if err != nil {
		return nil, err
	}
	e.open(sessionID(id), session{state, target.MRENCLAVE, e.now().Add(sessionTTL)})
	return encode(challengeMessage{protocolVersion, id, nonce, report.Encode(), e.node.NetworkSignatures}), nil
}

func (e *exchange) open(id sessionID, s session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	for oldestID, oldest := range e.sessions.fromOldest {
		if e.sessions.len() < e.max && now.Before(oldest.expires) {
			break
		}
		e.sessions.take(oldestID)
	}
	e.sessions.put(id, s)
}

// onRequest consumes the session, then verifies the requester: its report, its signatures, and that it began here.
func (e *exchange) onRequest(ctx context.Context, body []byte) (verifiedRequest, error) {
	id, value, err := openRequest(body)
	if err != nil {
		return verifiedRequest{}, err
	}
	e.mu.Lock()
	s, ok := e.sessions.take(sessionID(id))
	e.mu.Unlock()
	if !ok || !e.now().Before(s.expires) {
		return verifiedRequest{}, sessionUnknown("request", "its session does not exist, was used before, or has run out")
	}
	m, err := decodeRequest(value)
	if err != nil {
		return verifiedRequest{}, err
	}
	report, err := decodeReport(m.Report, "request")
	if err != nil {
		return verifiedRequest{}, err
	}
	if err := e.node.verifyPeer(report, m.NetworkSignatures); err != nil {
		return verifiedRequest{}, err
	}
	if report.MRENCLAVE != s.requester {
		return verifiedRequest{}, rejected(CodePeerChanged, "the request was refused",
			fmt.Sprintf("expected enclave %s, found %s", s.requester, report.MRENCLAVE))
	}
	state := s.transcript.addRequest(m.KEMPublicKey, m.KeySetID)
	if err := checkReportData(report, state.reportData(requestTag), "request"); err != nil {
		return verifiedRequest{}, err
	}
	return verifiedRequest{m, report, state}, e.node.Policy.checkListed(ctx, report)
}

// deliver encrypts the key set to the key in the request's report and returns the delivery.
func (e *exchange) deliver(request verifiedRequest, keys *KeySet) ([]byte, error) {
	if request.KeySetID != "" && request.KeySetID != keys.ID() {
		return nil, rejected(CodeKeySetMismatch, "the request was refused",
			"it wants key set "+request.KeySetID+", held is "+keys.ID())
	}
	receiptKey := e.node.crypto().random(receiptKeyBytes)
	plaintext := append(append(make([]byte, 0, receiptKeyBytes+len(keys.Bytes())), receiptKey...), keys.Bytes()...)
	defer clear(plaintext)
	ciphertext, err := e.node.crypto().kemSeal(request.KEMPublicKey, request.transcript[:], plaintext)
	if err != nil {
		return nil, err
	}
	state := request.transcript.addCiphertext(ciphertext)
	report, err := e.node.TEE.Report(request.report.TargetInfo(), state.reportData(deliveryTag))
	if err != nil {
		return nil, err
	}
	e.keep(sessionID(request.Session), &delivery{
		transcript: state, receiptKey: receiptKey, requester: request.report,
		keySetID: keys.ID(), expires: e.now().Add(deliveryTTL),
	})
	return encode(deliveryMessage{request.Session, ciphertext, report.Encode()}), nil
}

func (e *exchange) keep(id sessionID, d *delivery) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	for oldestID, oldest := range e.deliveries.fromOldest {
		if e.deliveries.len() < deliveriesMax && now.Before(oldest.expires) {
			break
		}
		clear(oldest.receiptKey)
		e.deliveries.take(oldestID)
	}
	e.deliveries.put(id, d)
}

// find returns the delivery that a confirmation is about. The caller holds the lock.
func (e *exchange) find(id []byte, what string) (*delivery, error) {
	d, ok := e.deliveries.get(sessionID(id))
	if !ok || !e.now().Before(d.expires) {
		return nil, sessionUnknown(what, "its session has no delivery under way")
	}
	return d, nil
}

// onReceived verifies the receipt: only who decrypted the delivery can make it. It may be repeated.
func (e *exchange) onReceived(body []byte) ([]byte, error) {
	m, err := decodeReceived(body)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	d, err := e.find(m.Session, "receipt")
	if err != nil {
		return nil, err
	}
	if !d.durable { // afterwards the receipt key is wiped, and a stronger word was given
		if subtle.ConstantTimeCompare(receipt(d.receiptKey, d.transcript), m.MAC) != 1 {
			return nil, rejected(CodeReceiptBad, "the receipt was refused", "its MAC does not fit the delivery")
		}
		d.received = true
	}
	return encode(acknowledgement{m.Session, "received"}), nil
}

// onDurable verifies the attested word that the key set is sealed and readable at the requester. It may be repeated.
// It returns the requester's id with the answer.
func (e *exchange) onDurable(body []byte) ([]byte, sgx.EnclaveID, error) {
	m, err := decodeDurable(body)
	if err != nil {
		return nil, sgx.EnclaveID{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	d, err := e.find(m.Session, "word that the keys are durable")
	if err != nil {
		return nil, sgx.EnclaveID{}, err
	}
	if err := e.checkDurable(d, m); err != nil {
		return nil, sgx.EnclaveID{}, err
	}
	d.durable = true
	clear(d.receiptKey)
	return encode(acknowledgement{m.Session, "durable"}), d.requester.MRENCLAVE, nil
}

func (e *exchange) checkDurable(d *delivery, m durableMessage) error {
	if !d.received {
		return rejected(CodeOutOfOrder, "durable was refused", "the receipt did not come before it")
	}
	report, err := decodeReport(m.Report, "durable")
	if err != nil {
		return err
	}
	if err := e.node.TEE.Verify(report); err != nil {
		return err
	}
	if err := checkSameEnclave(report, d.requester, "durable"); err != nil {
		return err
	}
	if m.KeySetID != d.keySetID {
		return rejected(CodeKeySetMismatch, "durable was refused",
			"expected key set "+d.keySetID+", found "+m.KeySetID)
	}
	state := d.transcript.addDurable(d.keySetID, m.Canary)
	return checkReportData(report, state.reportData(durableTag), "durable")
}

func sessionUnknown(what, why string) *Error {
	return &Error{CodeSessionUnknown, "the " + what + " was refused", why, "Begin again with hello.", Transient}
}

func offers(versions []int, version int) bool {
	for _, offered := range versions {
		if offered == version {
			return true
		}
	}
	return false
}
