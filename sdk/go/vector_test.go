package handover

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/mlkem"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"handover/internal/softcpu"
	"handover/sgx"
)

// testTEE is a software CPU's enclave with this package's errors.
type testTEE struct{ *softcpu.Enclave }

func (t testTEE) Verify(report sgx.Report) error {
	if t.Enclave.Verify(report) != nil {
		return rejected(CodeReportMACBad, "the report does not verify", "test")
	}
	return nil
}

// vector is docs/handover-v2-vector.json: one complete conversation.
type vector struct {
	Inputs struct {
		CPU struct {
			ReportRootKey string `json:"report_root_key"`
			OwnerEpoch    string `json:"owner_epoch"`
			ReportKeyID   string `json:"report_key_id"`
		} `json:"cpu"`
		NetworkPrivateKey string `json:"network_private_key"`
		Genesis           string `json:"genesis"`
		Requester         string `json:"requester_mrenclave"`
		Holder            string `json:"holder_mrenclave"`
		KEMPrivateKey     string `json:"kem_private_key"`
		ReceiptKey        string `json:"receipt_key"`
		KeySet            string `json:"key_set"`
		RequesterNonce    string `json:"requester_nonce"`
		Session           string `json:"session"`
		HolderNonce       string `json:"holder_nonce"`
	} `json:"inputs"`
	Messages map[string]json.RawMessage `json:"messages"`
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	data, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func loadVector(t *testing.T) vector {
	t.Helper()
	data, err := os.ReadFile("../../docs/handover-v2-vector.json")
	if err != nil {
		t.Skip("the vector is part of the project's checkout: ", err)
	}
	var v vector
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// message returns a message of the vector in its encoding on the wire.
func (v vector) message(t *testing.T, name string) []byte {
	t.Helper()
	var compact bytes.Buffer
	if err := json.Compact(&compact, v.Messages[name]); err != nil {
		t.Fatal(name, err)
	}
	return compact.Bytes()
}

// party returns one side of the vector's conversation, which draws the given random values in this order.
func (v vector) party(t *testing.T, mrenclave string, randoms ...string) Node {
	t.Helper()
	cpu := softcpu.NewCPU()
	copy(cpu.ReportRoot[:], unhex(t, v.Inputs.CPU.ReportRootKey))
	copy(cpu.OwnerEpoch[:], unhex(t, v.Inputs.CPU.OwnerEpoch))
	copy(cpu.ReportKeyID[:], unhex(t, v.Inputs.CPU.ReportKeyID))
	enclave := cpu.Enclave("")
	copy(enclave.Identity.MRENCLAVE[:], unhex(t, mrenclave))
	network := testNetwork(unhex(t, v.Inputs.NetworkPrivateKey))
	fixed := realPrimitives
	fixed.random = func(size int) []byte {
		value := unhex(t, randoms[0])
		randoms = randoms[1:]
		if len(value) != size {
			t.Fatalf("%d random bytes were drawn where %d are expected", size, len(value))
		}
		return value
	}
	fixed.kemGenerate = func() (hpke.PrivateKey, error) {
		private := unhex(t, v.Inputs.KEMPrivateKey)
		pq, err := mlkem.NewDecapsulationKey768(private[:64])
		if err != nil {
			return nil, err
		}
		classic, err := ecdh.X25519().NewPrivateKey(private[64:])
		if err != nil {
			return nil, err
		}
		return hpke.NewHybridPrivateKey(pq, classic)
	}
	fixed.kemSeal = func(_, _, plaintext []byte) ([]byte, error) {
		if hex.EncodeToString(plaintext) != v.Inputs.ReceiptKey+v.Inputs.KeySet {
			t.Error("the plaintext is not the receipt key and the key set")
		}
		var said struct{ Ciphertext string }
		if err := json.Unmarshal(v.Messages["delivery"], &said); err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.DecodeString(said.Ciphertext)
	}
	return Node{
		TEE: testTEE{enclave}, NetworkSignatures: [][]byte{network.sign(enclave.ID())}, primitives: &fixed,
		Policy: Policy{Genesis: [32]byte(unhex(t, v.Inputs.Genesis)), Network: network.keys(t)},
	}
}

func TestBothSidesSayTheBytesOfTheKnownAnswer(t *testing.T) {
	v := loadVector(t)
	in := v.Inputs
	requester, err := newRequester(v.party(t, in.Requester, in.RequesterNonce), "")
	if err != nil {
		t.Fatal(err)
	}
	holder, err := newExchange(v.party(t, in.Holder, in.Session, in.HolderNonce, in.ReceiptKey))
	if err != nil {
		t.Fatal(err)
	}
	says := func(name string) func([]byte, error) []byte {
		return func(got []byte, err error) []byte {
			t.Helper()
			if err != nil {
				t.Fatal(name, err)
			}
			if want := v.message(t, name); !bytes.Equal(got, want) {
				t.Fatalf("%s is\n%s\nwant\n%s", name, got, want)
			}
			return got
		}
	}
	hello := says("hello")(requester.hello(), nil)
	challenge := says("challenge")(holder.onHello(hello))
	request := says("request")(requester.onChallenge(challenge))
	verified, err := holder.onRequest(context.Background(), request)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := NewKeySet(unhex(t, in.KeySet))
	if err != nil {
		t.Fatal(err)
	}
	delivery := says("delivery")(holder.deliver(verified, keys))
	got, err := requester.onDelivery(delivery)
	if err != nil || !got.Equal(keys) {
		t.Fatalf("the delivery opens to %v, %v", got, err)
	}
	receivedAnswer := says("received answer")(holder.onReceived(says("received")(requester.received(), nil)))
	if err := requester.acknowledged(receivedAnswer, "received"); err != nil {
		t.Fatal(err)
	}
	durable, err := requester.durable(true)
	answer, by, err := holder.onDurable(says("durable")(durable, err))
	if says("durable answer")(answer, err); by.String() != in.Requester {
		t.Errorf("durable came from %s", by)
	}
}

func TestTheStatesAreThoseThatTheProtocolPageQuotes(t *testing.T) {
	v := loadVector(t)
	page, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	requester, err := newRequester(v.party(t, v.Inputs.Requester, v.Inputs.RequesterNonce), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := requester.onChallenge(v.message(t, "challenge")); err != nil {
		t.Fatal(err)
	}
	t1 := requester.transcript
	if _, err := requester.onDelivery(v.message(t, "delivery")); err != nil {
		t.Fatal(err)
	}
	t2 := requester.transcript
	for name, state := range map[string]transcript{"T1": t1, "T2": t2, "T3": t2.addDurable(requester.keySetID, true)} {
		if quoted := name + " = " + hex.EncodeToString(state[:]); !bytes.Contains(page, []byte(quoted)) {
			t.Errorf("docs/protocol.md does not have %s", quoted)
		}
	}
}
