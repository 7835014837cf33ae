package handover

import (
	"encoding/json"
	"fmt"
	"strconv"

	"handover/sgx"
)

const (
	protocolVersion   = 2
	nonceBytes        = 32
	sessionBytes      = 16
	genesisBytes      = 32
	signatureBytes    = 64
	signaturesMax     = 16
	versionsMax       = 8
	kemPublicKeyBytes = 1184 + 32
	receiptKeyBytes   = 32
	macBytes          = 32
	// ciphertextOverhead is the encapsulation, the AEAD's tag and the receipt key.
	ciphertextOverhead = 1088 + 32 + 16 + receiptKeyBytes
)

// The messages of docs/protocol.md. Their fields stand in the order of the encoding; []byte is base64 in JSON.
type (
	helloMessage struct {
		Versions   []int  `json:"versions"`
		Genesis    []byte `json:"genesis"`
		Nonce      []byte `json:"nonce"`
		TargetInfo []byte `json:"target_info"`
	}
	challengeMessage struct {
		Version           int      `json:"version"`
		Session           []byte   `json:"session"`
		Nonce             []byte   `json:"nonce"`
		Report            []byte   `json:"report"`
		NetworkSignatures [][]byte `json:"network_signatures"`
	}
	requestMessage struct {
		Session           []byte   `json:"session"`
		KEMPublicKey      []byte   `json:"kem_public_key"`
		KeySetID          string   `json:"key_set_id"`
		Report            []byte   `json:"report"`
		NetworkSignatures [][]byte `json:"network_signatures"`
	}
	deliveryMessage struct {
		Session    []byte `json:"session"`
		Ciphertext []byte `json:"ciphertext"`
		Report     []byte `json:"report"`
	}
	receivedMessage struct {
		Session []byte `json:"session"`
		MAC     []byte `json:"mac"`
	}
	durableMessage struct {
		Session  []byte `json:"session"`
		KeySetID string `json:"key_set_id"`
		Canary   bool   `json:"canary"`
		Report   []byte `json:"report"`
	}
	acknowledgement struct {
		Session []byte `json:"session"`
		State   string `json:"state"`
	}
)

// encode returns a message as compact JSON.
func encode(message any) []byte {
	body, err := json.Marshal(message)
	if err != nil {
		panic(err) // the messages hold bytes, numbers and text only
	}
	return body
}

// fields takes the values out of one message and remembers the first that is not as it must be.
type fields struct {
	what  string
	value map[string]any
	err   error
}

// openFields begins to decode a message that has exactly these fields.
func openFields(what string, value map[string]any, names ...string) *fields {
	f := &fields{what: what, value: value}
	for _, name := range names {
		if _, ok := value[name]; !ok {
			f.fail("the field " + name + " is missing")
		}
	}
	if len(value) > len(names) {
		f.fail(fmt.Sprintf("it has %d unknown fields", len(value)-len(names)))
	}
	return f
}

func (f *fields) fail(why string) {
	if f.err == nil {
		f.err = malformed(f.what, why)
	}
}

func (f *fields) bytes(name string, size int) []byte { return f.bytesBetween(name, size, size) }

func (f *fields) bytesBetween(name string, low, high int) []byte {
	return f.binary(name, f.value[name], low, high)
}

func (f *fields) binary(name string, value any, low, high int) []byte {
	text, ok := value.(string)
	if !ok {
		f.fail(name + " is not text")
		return nil
	}
	data, err := decodeBase64(text)
	if err != nil {
		f.fail(name + ": " + err.Error())
		return nil
	}
	if len(data) < low || len(data) > high {
		f.fail(fmt.Sprintf("%s has %d bytes, expected %d to %d", name, len(data), low, high))
		return nil
	}
	return data
}

func (f *fields) signatures(name string) [][]byte {
	list, ok := f.value[name].([]any)
	if !ok || len(list) == 0 || len(list) > signaturesMax {
		f.fail(fmt.Sprintf("%s is not a list of 1 to %d", name, signaturesMax))
		return nil
	}
	signatures := make([][]byte, len(list))
	for i, item := range list {
		signatures[i] = f.binary(name, item, signatureBytes, signatureBytes)
	}
	return signatures
}

func (f *fields) number(name string, value any) int {
	text, _ := value.(json.Number)
	number, err := strconv.Atoi(string(text))
	if err != nil || number < 1 || number > 255 {
		f.fail(name + " is not a number from 1 to 255")
		return 0
	}
	return number
}

func (f *fields) versions(name string) []int {
	list, ok := f.value[name].([]any)
	if !ok || len(list) == 0 || len(list) > versionsMax {
		f.fail(fmt.Sprintf("%s is not a list of 1 to %d numbers", name, versionsMax))
		return nil
	}
	versions := make([]int, len(list))
	for i, item := range list {
		versions[i] = f.number(name, item)
		if i > 0 && versions[i] <= versions[i-1] {
			f.fail(name + " is not a rising list")
		}
	}
	return versions
}

func (f *fields) keySetID(name string, emptyAllowed bool) string {
	text, ok := f.value[name].(string)
	if emptyAllowed && ok && text == "" {
		return ""
	}
	if _, err := sgx.ParseEnclaveID(text); !ok || err != nil { // the same spelling: 64 lower-case hex digits
		f.fail(name + " is not 64 lower-case hex digits")
	}
	return text
}

func (f *fields) boolean(name string) bool {
	value, ok := f.value[name].(bool)
	if !ok {
		f.fail(name + " is neither true nor false")
	}
	return value
}

// messageErr returns the first fault, as an error that is nil where there is none.
func (f *fields) messageErr() error {
	if f.err != nil {
		return f.err
	}
	return nil
}

func decodeHello(body []byte) (helloMessage, error) {
	value, err := strictObject(body, smallMessageBytesMax, "hello")
	if err != nil {
		return helloMessage{}, err
	}
	f := openFields("hello", value, "versions", "genesis", "nonce", "target_info")
	return helloMessage{
		f.versions("versions"), f.bytes("genesis", genesisBytes), f.bytes("nonce", nonceBytes),
		f.bytes("target_info", sgx.TargetInfoSize),
	}, f.messageErr()
}

func decodeChallenge(body []byte) (challengeMessage, error) {
	value, err := strictObject(body, smallMessageBytesMax, "challenge")
	if err != nil {
		return challengeMessage{}, err
	}
	f := openFields("challenge", value, "version", "session", "nonce", "report", "network_signatures")
	return challengeMessage{
		f.number("version", value["version"]), f.bytes("session", sessionBytes), f.bytes("nonce", nonceBytes),
		f.bytes("report", sgx.ReportSize), f.signatures("network_signatures"),
	}, f.messageErr()
}

// openRequest returns the session that a request names and its fields, which are still to be decoded: so a holder can
// consume the session before it looks at anything else.
func openRequest(body []byte) (session []byte, value map[string]any, err error) {
	value, err = strictObject(body, smallMessageBytesMax, "request")
	if err != nil {
		return nil, nil, err
	}
	f := &fields{what: "request", value: value}
	session = f.bytes("session", sessionBytes)
	return session, value, f.messageErr()
}

func decodeRequest(value map[string]any) (requestMessage, error) {
	f := openFields("request", value, "session", "kem_public_key", "key_set_id", "report", "network_signatures")
	return requestMessage{
		f.bytes("session", sessionBytes), f.bytes("kem_public_key", kemPublicKeyBytes), f.keySetID("key_set_id", true),
		f.bytes("report", sgx.ReportSize), f.signatures("network_signatures"),
	}, f.messageErr()
}

func decodeDelivery(body []byte) (deliveryMessage, error) {
	value, err := strictObject(body, messageBytesMax, "delivery")
	if err != nil {
		return deliveryMessage{}, err
	}
	f := openFields("delivery", value, "session", "ciphertext", "report")
	return deliveryMessage{
		f.bytes("session", sessionBytes),
		f.bytesBetween("ciphertext", ciphertextOverhead+1, ciphertextOverhead+KeySetBytesMax),
		f.bytes("report", sgx.ReportSize),
	}, f.messageErr()
}

func decodeReceived(body []byte) (receivedMessage, error) {
	value, err := strictObject(body, smallMessageBytesMax, "received")
	if err != nil {
		return receivedMessage{}, err
	}
	f := openFields("received", value, "session", "mac")
	return receivedMessage{f.bytes("session", sessionBytes), f.bytes("mac", macBytes)}, f.messageErr()
}

func decodeDurable(body []byte) (durableMessage, error) {
	value, err := strictObject(body, smallMessageBytesMax, "durable")
	if err != nil {
		return durableMessage{}, err
	}
	f := openFields("durable", value, "session", "key_set_id", "canary", "report")
	return durableMessage{
		f.bytes("session", sessionBytes), f.keySetID("key_set_id", false), f.boolean("canary"),
		f.bytes("report", sgx.ReportSize),
	}, f.messageErr()
}

func decodeAcknowledgement(body []byte) (acknowledgement, error) {
	value, err := strictObject(body, smallMessageBytesMax, "acknowledgement")
	if err != nil {
		return acknowledgement{}, err
	}
	f := openFields("acknowledgement", value, "session", "state")
	state, ok := value["state"].(string)
	if !ok || state != "received" && state != "durable" {
		f.fail("state is unknown")
	}
	return acknowledgement{f.bytes("session", sessionBytes), state}, f.messageErr()
}

// decodeReport decodes the REPORT in a message; it proves nothing yet.
func decodeReport(data []byte, what string) (sgx.Report, error) {
	report, err := sgx.DecodeReport(data)
	if err != nil {
		return report, malformed(what, "its report: "+err.Error())
	}
	return report, nil
}
