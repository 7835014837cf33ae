package handover

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"handover/internal/softcpu"
	"handover/sgx"
)

type v1Vault struct {
	*httptest.Server
	holder *HolderV1
	keys   *keyBox
}

func newVaultV1(t *testing.T, node Node, around func(http.Handler) http.Handler) v1Vault {
	t.Helper()
	box := &keyBox{keys: newKeys(t)}
	holder, err := NewHolderV1(node, box.get)
	if err != nil {
		t.Fatal(err)
	}
	return v1Vault{onLoopback(t, holder, around), holder, box}
}

func TestKeysAreRequestedOverV1(t *testing.T) {
	asks, holds := newNode(t, "node"), newNode(t, "vault")
	asks.Policy.Vaults, holds.Policy.Vaults = []sgx.EnclaveID{idOf(holds)}, []sgx.EnclaveID{idOf(asks)}
	vault := newVaultV1(t, holds, nil)
	keys, err := asks.RequestKeysV1(deadline(t), vault.URL, sealed(true))
	if err != nil || !bytes.Equal(keys.Bytes(), theKeys) {
		t.Fatal(keys, err)
	}
	if live := vault.holder.exchange.live(idOf(asks)); len(live) != 0 {
		t.Errorf("%d challenges are live after their use", len(live))
	}
}

func newV1(t *testing.T, node Node) *exchangeV1 {
	t.Helper()
	holder, err := newExchangeV1(node)
	if err != nil {
		t.Fatal(err)
	}
	return holder
}

// secretOf runs the first half of an exchange against a holder.
func secretOf(t *testing.T, asks Node, holder *exchangeV1) v1Secret {
	_, secret := askFor(t, asks, holder)
	return secret
}

// askFor is secretOf, with the requester that can open the answer.
func askFor(t *testing.T, asks Node, holder *exchangeV1) (*requesterV1, v1Secret) {
	t.Helper()
	r := newRequesterV1(asks, asks.NetworkSignatures[0])
	hello, err := r.hello()
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := holder.onHello(hello)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := r.onChallenge(challenge)
	if err != nil {
		t.Fatal(err)
	}
	return r, secret
}

func TestAV1ChallengeIsUsedOnceExpiresAndBelongsToItsEnclave(t *testing.T) {
	holder := newV1(t, newNode(t, "node"))
	now := time.Unix(0, 0)
	holder.now = func() time.Time { return now }
	secret := secretOf(t, newNode(t, "vault"), holder)
	if _, err := holder.onSecret(secret); err != nil {
		t.Fatal(err)
	}
	_, err := holder.onSecret(secret)
	needCode(t, CodeV1ChallengeUnknown, err)
	if !IsTransient(err) {
		t.Error("an unknown challenge must be answered so that the exchange begins again")
	}
	secret = secretOf(t, newNode(t, "vault"), holder)
	now = now.Add(challengeTTL)
	_, err = holder.onSecret(secret)
	needCode(t, CodeV1ChallengeUnknown, err)

	others := newV1(t, newNode(t, "node"))
	_, err = others.onSecret(secretOf(t, newNode(t, "vault"), holder))
	needCode(t, CodeV1ChallengeUnknown, err)
}

func TestAV1ChallengeIsConsumedByWhoProvesItselfWhateverTheAnswer(t *testing.T) {
	vault := newVaultV1(t, newNode(t, "node"), nil)
	vault.keys.keys = nil
	asks := newNode(t, "vault")
	for range 6 { // polls before there is anything
		_, err := requestOnceV1(deadline(t), newClient(vault.URL), newRequesterV1(asks, asks.NetworkSignatures[0]))
		needCode(t, CodeV1Refused, err)
		if !IsTransient(err) {
			t.Error(err)
		}
	}
	if live := vault.holder.exchange.live(idOf(asks)); len(live) != 0 {
		t.Errorf("%d challenges are left of six polls", len(live))
	}
	vault.keys.keys = newKeys(t)
	if _, err := asks.RequestKeysV1(deadline(t), vault.URL, sealed(false)); err != nil {
		t.Error(err)
	}
}

func TestAFloodOverV1CostsAnHonestRequesterNothing(t *testing.T) {
	holder := newV1(t, newNode(t, "node"))
	holder.max = 50
	now := time.Unix(0, 0)
	holder.now = func() time.Time { return now }
	asks := newNode(t, "vault")
	secret := secretOf(t, asks, holder)
	for range 1000 { // in its own name
		secretOf(t, asks, holder)
	}
	for number := range 49 {
		secretOf(t, newNode(t, fmt.Sprint("stranger ", number)), holder)
	}
	if _, err := holder.onSecret(secret); err != nil {
		t.Error("a flood pushed it out:", err)
	}
	if n := holder.challenges.len(); n != 50 {
		t.Errorf("%d ids have a challenge", n)
	}
	secret = secretOf(t, asks, holder)
	now = now.Add(challengeRenewed)
	secretOf(t, asks, holder) // another one is given now, and the earlier one is good until it ends
	if _, err := holder.onSecret(secret); err != nil {
		t.Error("a renewed challenge ended the earlier one:", err)
	}
	for number := range 60 {
		secretOf(t, newNode(t, fmt.Sprint("stranger ", number)), holder)
	}
	if n := holder.challenges.len(); n != 50 {
		t.Errorf("%d ids have a challenge", n)
	}
}

func TestAV1HolderRefusesWhoIsNotAVault(t *testing.T) {
	holds := newNode(t, "node")
	holds.Policy.Vaults = []sgx.EnclaveID{idOf(newNode(t, "vault"))}
	holder := newV1(t, holds)
	for want, asks := range map[Code]Node{
		CodePeerNotUpgrader: newNode(t, "older node"),
		CodePeerDebug:       newNode(t, "vault", func(e *softcpu.Enclave) { e.Identity.Attributes.Flags |= sgx.Debug }),
	} {
		_, err := holder.onSecret(secretOf(t, asks, holder))
		needCode(t, want, err)
	}
	unsigned := newNode(t, "vault")
	unsigned.NetworkSignatures = [][]byte{make([]byte, 64)}
	_, err := holder.onSecret(secretOf(t, unsigned, holder))
	needCode(t, CodeSignatureBad, err)
	secret := secretOf(t, newNode(t, "vault"), holder)
	secret.publicKey = bytes.Repeat([]byte{1}, 32)
	_, err = holder.onSecret(secret)
	needCode(t, CodeV1ChallengeUnknown, err)

	holds.Policy.IsListed = func(context.Context, sgx.EnclaveID) (bool, error) { return false, nil }
	vault := newVaultV1(t, holds, nil)
	_, err = newNode(t, "vault").RequestKeysV1(deadline(t), vault.URL, sealed(false))
	if err == nil || !strings.Contains(err.Error(), string(CodeUpgraderUnlisted)) {
		t.Error("a vault that the chain does not list got", err)
	}
}

func TestEachNetworkSignatureIsTriedOverV1(t *testing.T) {
	stranger := testNetwork(bytes.Repeat([]byte{3}, 32))
	holds, asks := newNode(t, "vault"), newNode(t, "node")
	holds.NetworkSignatures = [][]byte{stranger.sign(idOf(holds)), holds.NetworkSignatures[0]}
	asks.NetworkSignatures = [][]byte{stranger.sign(idOf(asks)), asks.NetworkSignatures[0]}
	vault := newVaultV1(t, holds, nil)
	if _, err := asks.RequestKeysV1(deadline(t), vault.URL, sealed(false)); err != nil {
		t.Error(err)
	}
	asks.NetworkSignatures = asks.NetworkSignatures[:1]
	_, err := asks.RequestKeysV1(deadline(t), vault.URL, sealed(false))
	needCode(t, CodeV1Refused, err)
	if err == nil || !strings.Contains(err.Error(), string(CodeSignatureBad)) {
		t.Error("what the peer said is not shown:", err)
	}
}

func TestAV1ExchangeBeginsAgainWhereTheVaultRestartedInBetween(t *testing.T) {
	var refused atomic.Int32
	vault := newVaultV1(t, newNode(t, "vault"), func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/secret" && refused.Add(1) <= refusalsMax-1 {
				w.WriteHeader(http.StatusBadRequest)
				io.WriteString(w, "no such random")
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	if _, err := newNode(t, "node").RequestKeysV1(deadline(t), vault.URL, sealed(false)); err != nil {
		t.Error(err)
	}
}

func TestUnknownFieldsAreIgnoredOverV1(t *testing.T) {
	vault := newVaultV1(t, newNode(t, "vault"), func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			recorder := httptest.NewRecorder()
			next.ServeHTTP(recorder, r)
			body := recorder.Body.Bytes()
			if r.URL.Path == "/secret" {
				body = bytes.Replace(body, []byte("{"), []byte(`{"Version":"0.1.9","More":{"a":[1]},`), 1)
			}
			w.Write(body)
		})
	})
	if _, err := newNode(t, "node").RequestKeysV1(deadline(t), vault.URL, sealed(false)); err != nil {
		t.Error(err)
	}
}

func TestARequesterRefusesAV1AnswerThatIsNotTheHolders(t *testing.T) {
	asks, holds := newNode(t, "node"), newNode(t, "vault")
	answerFor := func() (*requesterV1, v1Answer) {
		holder := newV1(t, holds)
		r, secret := askFor(t, asks, holder)
		requester, err := holder.onSecret(secret)
		if err != nil {
			t.Fatal(err)
		}
		body, err := holder.answer(secret, requester, newKeys(t))
		if err != nil {
			t.Fatal(err)
		}
		var answer v1Answer
		if err := json.Unmarshal(body, &answer); err != nil {
			t.Fatal(err)
		}
		return r, answer
	}
	for want, change := range map[Code]func(*requesterV1, *v1Answer){
		"":                   func(*requesterV1, *v1Answer) {},
		CodeV1SignatureBad:   func(_ *requesterV1, a *v1Answer) { a.EncryptSecret[0] ^= 1 },
		CodeV1DecryptFailed:  func(r *requesterV1, _ *v1Answer) { r.seed[0] ^= 1 },
		CodeV1HolderChanged:  func(r *requesterV1, _ *v1Answer) { r.holder = sgx.EnclaveID{1} },
		CodeSignatureBad:     func(_ *requesterV1, a *v1Answer) { a.EnclaveSignature[0] ^= 1 },
		CodeV1MessageInvalid: func(_ *requesterV1, a *v1Answer) { a.LocalReport = a.LocalReport[1:] },
		CodeReportMACBad:     func(_ *requesterV1, a *v1Answer) { a.LocalReport[20] ^= 1 },
	} {
		r, answer := answerFor()
		change(r, &answer)
		body, _ := json.Marshal(answer)
		_, err := r.open(body)
		needCode(t, want, err)
	}
}

func TestBadV1QueriesAre400WithACodeAndNoMore(t *testing.T) {
	vault := newVaultV1(t, newNode(t, "node"), nil)
	for path, code := range map[string]Code{
		"/teerandom": CodeMultibaseInvalid, "/teerandom?verifyreport=b": CodeV1MessageInvalid,
		"/secret": CodeMultibaseInvalid, "/secret?pubkey=bae": CodeV1MessageInvalid,
	} {
		answer, err := http.Get(vault.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != 400 || string(text) != string(code) {
			t.Errorf("%s: %d %s", path, answer.StatusCode, text)
		}
	}
}

func TestAV1NumberIsWrittenWithoutLeadingZeros(t *testing.T) {
	for in, want := range map[string]string{"\x00\x00\x01\x00": "\x01\x00", "\x00": "", "\x05": "\x05"} {
		if got := withoutLeadingZeros([]byte(in)); string(got) != want {
			t.Errorf("%x: %x", in, got)
		}
	}
}
