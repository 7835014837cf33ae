package handover

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"sync"
	"testing"

	"handover/internal/softcpu"
	"handover/sgx"
)

// testNetwork is the seed of a network's ed25519 key.
type testNetwork []byte

var (
	theNetwork = testNetwork("0123456789abcdef0123456789abcdef")
	theCPU     = softcpu.NewCPU()
	theGenesis = [32]byte{1: 0x11}
	theKeys    = []byte("application keys of a node: never to be seen")
)

func (n testNetwork) private() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(n) }

func (n testNetwork) sign(id sgx.EnclaveID) []byte {
	return ed25519.Sign(n.private(), []byte(id.String()))
}

func (n testNetwork) keys(t testing.TB) NetworkKeys {
	t.Helper()
	keys, err := ParseNetworkKeys(1, EncodeMultibase(n.private().Public().(ed25519.PublicKey)))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// newNode returns a node in an enclave of theCPU; change alters its enclave's identity.
func newNode(t testing.TB, name string, change ...func(*softcpu.Enclave)) Node {
	t.Helper()
	enclave := theCPU.Enclave(name)
	for _, c := range change {
		c(enclave)
	}
	return Node{
		TEE: testTEE{enclave}, NetworkSignatures: [][]byte{theNetwork.sign(enclave.ID())},
		Policy: Policy{Genesis: theGenesis, Network: theNetwork.keys(t)},
	}
}

func idOf(node Node) sgx.EnclaveID { return node.TEE.(testTEE).ID() }

func newKeys(t testing.TB) *KeySet {
	t.Helper()
	keys, err := NewKeySet(theKeys)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// conversation is a requester and a holder that talk without HTTP.
type conversation struct {
	t         testing.TB
	requester *requester
	holder    *exchange
}

func newConversation(t testing.TB, asks, holds Node, wanted string) conversation {
	t.Helper()
	r, err := newRequester(asks, wanted)
	if err != nil {
		t.Fatal(err)
	}
	h, err := newExchange(holds)
	if err != nil {
		t.Fatal(err)
	}
	return conversation{t, r, h}
}

func (c conversation) challenge() []byte {
	c.t.Helper()
	body, err := c.holder.onHello(c.requester.hello())
	if err != nil {
		c.t.Fatal(err)
	}
	return body
}

func (c conversation) request() []byte {
	c.t.Helper()
	body, err := c.requester.onChallenge(c.challenge())
	if err != nil {
		c.t.Fatal(err)
	}
	return body
}

// answer is the holder's answer to a request, where it decides to hand out.
func (c conversation) answer(request []byte) ([]byte, error) {
	verified, err := c.holder.onRequest(context.Background(), request)
	if err != nil {
		return nil, err
	}
	return c.holder.deliver(verified, newKeys(c.t))
}

func (c conversation) delivered() {
	c.t.Helper()
	body, err := c.answer(c.request())
	if err == nil {
		_, err = c.requester.onDelivery(body)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// altered returns a message with one field replaced.
func altered(t testing.TB, message []byte, name string, value any) []byte {
	t.Helper()
	fields := map[string]any{}
	if err := json.Unmarshal(message, &fields); err != nil {
		t.Fatal(err)
	}
	fields[name] = value
	body, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func needCode(t testing.TB, want Code, err error) {
	t.Helper()
	if CodeOf(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// keyBox holds a node's keys as a KeysFunc gives them out.
type keyBox struct {
	mu   sync.Mutex
	keys *KeySet
}

func (b *keyBox) get() *KeySet {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.keys == nil {
		return nil
	}
	return b.keys.Clone()
}

var errTest = errors.New("planted")

func sealRequest() sgx.KeyRequest { return sgx.SealKeyRequest(sgx.Report{}, [32]byte{}) }
