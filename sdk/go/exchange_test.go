package handover

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"handover/internal/softcpu"
	"handover/sgx"
)

func TestAHandoverMovesTheKeysAndIsConfirmedTwice(t *testing.T) {
	asks, holds := newNode(t, "vault"), newNode(t, "node")
	asks.Policy.Vaults, holds.Policy.Vaults = []sgx.EnclaveID{idOf(holds)}, []sgx.EnclaveID{idOf(asks)}
	c := newConversation(t, asks, holds, newKeys(t).ID())
	body, err := c.answer(c.request())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := c.requester.onDelivery(body)
	if err != nil || !bytes.Equal(keys.Bytes(), theKeys) {
		t.Fatalf("got %v, %v", keys, err)
	}
	durable, err := c.requester.durable(true)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = c.holder.onDurable(durable)
	needCode(t, CodeOutOfOrder, err)
	for range 2 { // each may be repeated after a lost answer
		if _, err := c.holder.onReceived(c.requester.received()); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, by, err := c.holder.onDurable(durable); err != nil || by != idOf(asks) {
			t.Fatal(by, err)
		}
	}
}

func TestAHolderRefusesARequesterThatIsNotAsItMustBe(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*softcpu.Enclave)
		code   Code
	}{
		"debug":          {func(e *softcpu.Enclave) { e.Identity.Attributes.Flags |= sgx.Debug }, CodePeerDebug},
		"not init":       {func(e *softcpu.Enclave) { e.Identity.Attributes.Flags &^= sgx.Init }, CodePeerNotInit},
		"provision key":  {func(e *softcpu.Enclave) { e.Identity.Attributes.Flags |= sgx.ProvisionKey }, CodePeerAttributes},
		"32 bits":        {func(e *softcpu.Enclave) { e.Identity.Attributes.Flags &^= sgx.Mode64Bit }, CodePeerAttributes},
		"no SSE":         {func(e *softcpu.Enclave) { e.Identity.Attributes.XFRM = 1 }, CodePeerXFRM},
		"unknown state":  {func(e *softcpu.Enclave) { e.Identity.Attributes.XFRM |= 1 << 40 }, CodePeerXFRM},
		"MISCSELECT":     {func(e *softcpu.Enclave) { e.Identity.MiscSelect = 2 }, CodePeerMiscSelect},
		"CET":            {func(e *softcpu.Enclave) { e.Identity.CETAttributes = 1 }, CodePeerCET},
		"CONFIGID":       {func(e *softcpu.Enclave) { e.Identity.ConfigID[63] = 1 }, CodePeerConfig},
		"low ISVSVN":     {func(e *softcpu.Enclave) { e.Identity.ISVSVN = 2 }, CodePeerISVSVN},
		"not a vault":    {func(e *softcpu.Enclave) { e.Identity.ISVSVN, e.Identity.MRENCLAVE = 3, sgx.EnclaveID{1} }, CodePeerNotUpgrader},
		"another's name": {func(e *softcpu.Enclave) { e.Identity.ISVSVN = 3 }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			asks, holds := newNode(t, "vault", c.change), newNode(t, "node")
			holds.Policy.ISVSVNFloor = 3
			holds.Policy.Vaults = []sgx.EnclaveID{idOf(newNode(t, "vault"))}
			conversation := newConversation(t, asks, holds, "")
			_, err := conversation.answer(conversation.request())
			needCode(t, c.code, err)
		})
	}
}

func TestARequesterRefusesAHolderThatIsNotAsItMustBe(t *testing.T) {
	holds := newNode(t, "vault", func(e *softcpu.Enclave) { e.Identity.Attributes.Flags |= sgx.Debug })
	c := newConversation(t, newNode(t, "node"), holds, "")
	_, err := c.requester.onChallenge(c.challenge())
	needCode(t, CodePeerDebug, err)

	asks := newNode(t, "node")
	asks.Policy.Vaults = []sgx.EnclaveID{{1}}
	c = newConversation(t, asks, newNode(t, "vault"), "")
	_, err = c.requester.onChallenge(c.challenge())
	needCode(t, CodePeerNotUpgrader, err)

	holds = newNode(t, "vault")
	holds.NetworkSignatures = [][]byte{testNetwork(bytes.Repeat([]byte{9}, 32)).sign(idOf(holds))}
	c = newConversation(t, newNode(t, "node"), holds, "")
	_, err = c.requester.onChallenge(c.challenge())
	needCode(t, CodeSignatureBad, err)
}

func TestEveryPartOfARequestIsBoundToItsSession(t *testing.T) {
	other := EncodeBase64(bytes.Repeat([]byte{7}, 1216))
	for field, c := range map[string]struct {
		value any
		code  Code
	}{
		"kem_public_key":     {other, CodeReportDataMismatch},
		"key_set_id":         {strings.Repeat("0", 64), CodeReportDataMismatch},
		"network_signatures": {[]string{EncodeBase64(make([]byte, 64))}, CodeSignatureBad},
		"report":             {EncodeBase64(make([]byte, sgx.ReportSize)), CodeReportMACBad},
		"more":               {1, CodeMessageMalformed},
	} {
		c2 := newConversation(t, newNode(t, "vault"), newNode(t, "node"), "")
		request := c2.request()
		_, err := c2.answer(altered(t, request, field, c.value))
		needCode(t, c.code, err)
		_, err = c2.answer(request) // the altered one has used the session up
		needCode(t, CodeSessionUnknown, err)
	}
}

func TestAReportForAnotherConversationRoleOrEnclaveIsRefused(t *testing.T) {
	first, second := newConversation(t, newNode(t, "vault"), newNode(t, "node"), ""), newConversation(t, newNode(t, "vault"), newNode(t, "node"), "")
	stale := first.challenge()
	second.challenge()
	_, err := second.requester.onChallenge(stale)
	needCode(t, CodeReportDataMismatch, err)

	c := newConversation(t, newNode(t, "vault"), newNode(t, "node"), "")
	thief := newConversation(t, newNode(t, "other vault"), newNode(t, "node"), "")
	_, err = thief.requester.onChallenge(c.challenge())
	needCode(t, CodeReportMACBad, err)
	thief.holder = c.holder
	request := thief.request()
	_, err = c.answer(altered(t, request, "session", EncodeBase64(c.lastSession())))
	needCode(t, CodePeerChanged, err)
}

func TestAVaultThatTheChainDoesNotListGetsNothing(t *testing.T) {
	holds := newNode(t, "node")
	var listed bool
	var problem error
	var asked sgx.EnclaveID
	holds.Policy.IsListed = func(_ context.Context, id sgx.EnclaveID) (bool, error) {
		asked = id
		return listed, problem
	}
	vault := newNode(t, "vault")
	c := newConversation(t, vault, holds, "")
	_, err := c.answer(c.request())
	needCode(t, CodeUpgraderUnlisted, err)
	if IsTransient(err) || asked != idOf(vault) {
		t.Errorf("a revoked vault was refused for now only, or %s was asked for", asked)
	}
	problem = errTest
	_, err = c.answer(c.request())
	needCode(t, CodeUpgraderUnlisted, err)
	if !IsTransient(err) {
		t.Error("what is not known now was refused for good")
	}
	listed, problem = true, nil
	if _, err := c.answer(c.request()); err != nil {
		t.Error(err)
	}
}

func TestAFloodOfHellosCostsAnHonestRequesterNothing(t *testing.T) {
	vault := newNode(t, "vault")
	c := newConversation(t, vault, newNode(t, "node"), "")
	c.holder.max = 100
	request := c.request()
	for range 99 { // in the name of the very same enclave
		if _, err := c.holder.onHello(c.requester.hello()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.answer(request); err != nil {
		t.Error("fewer hellos than there are places pushed it out:", err)
	}
	request = c.request()
	for range 100 {
		c.challenge()
	}
	_, err := c.answer(request)
	needCode(t, CodeSessionUnknown, err)
	if n := c.holder.sessions.len(); n > 100 {
		t.Errorf("%d sessions are open", n)
	}
}

func TestSessionsAndDeliveriesRunOut(t *testing.T) {
	c := newConversation(t, newNode(t, "vault"), newNode(t, "node"), "")
	now := time.Unix(0, 0)
	c.holder.now = func() time.Time { return now }
	request := c.request()
	now = now.Add(sessionTTL)
	_, err := c.answer(request)
	needCode(t, CodeSessionUnknown, err)
	c.delivered()
	receipt := c.requester.received()
	now = now.Add(deliveryTTL)
	_, err = c.holder.onReceived(receipt)
	needCode(t, CodeSessionUnknown, err)
	for range deliveriesMax + 5 {
		c.requester, _ = newRequester(newNode(t, "vault"), "")
		c.delivered()
	}
	if n := c.holder.deliveries.len(); n != deliveriesMax {
		t.Errorf("%d deliveries are kept", n)
	}
	if n := c.holder.sessions.len(); n != 0 {
		t.Errorf("%d sessions are kept", n)
	}
}

func TestConfirmationsCannotBeForged(t *testing.T) {
	c := newConversation(t, newNode(t, "vault"), newNode(t, "node"), "")
	c.delivered()
	_, err := c.holder.onReceived(altered(t, c.requester.received(), "mac", EncodeBase64(make([]byte, 32))))
	needCode(t, CodeReceiptBad, err)
	if _, err := c.holder.onReceived(c.requester.received()); err != nil {
		t.Fatal(err)
	}
	durable, err := c.requester.durable(true)
	if err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]struct {
		value any
		code  Code
	}{
		"key_set_id": {strings.Repeat("0", 64), CodeKeySetMismatch},
		"canary":     {false, CodeReportDataMismatch},
		"session":    {EncodeBase64(make([]byte, 16)), CodeSessionUnknown},
		"report":     {EncodeBase64(make([]byte, sgx.ReportSize)), CodeReportMACBad},
	} {
		_, _, err := c.holder.onDurable(altered(t, durable, field, change.value))
		needCode(t, change.code, err)
	}
	stranger := newNode(t, "another vault")
	report, _ := stranger.TEE.Report(c.requester.holder.TargetInfo(), [64]byte{})
	_, _, err = c.holder.onDurable(altered(t, durable, "report", EncodeBase64(report.Encode())))
	needCode(t, CodePeerChanged, err)
	if _, _, err := c.holder.onDurable(durable); err != nil {
		t.Error(err)
	}
}

func TestARequesterThatNeedsOneKeySetTakesNoOther(t *testing.T) {
	c := newConversation(t, newNode(t, "node"), newNode(t, "vault"), strings.Repeat("0", 64))
	_, err := c.answer(c.request())
	needCode(t, CodeKeySetMismatch, err)

	c.requester, _ = newRequester(newNode(t, "node"), strings.Repeat("0", 64))
	verified, err := c.holder.onRequest(context.Background(), c.request())
	if err != nil {
		t.Fatal(err)
	}
	verified.KeySetID = "" // a holder that does not look
	body, err := c.holder.deliver(verified, newKeys(t))
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.requester.onDelivery(body)
	needCode(t, CodeKeySetMismatch, err)
}

func TestHellosAreStrict(t *testing.T) {
	c := newConversation(t, newNode(t, "vault"), newNode(t, "node"), "")
	hello := c.requester.hello()
	nonce := EncodeBase64(c.requester.nonce)
	for name, bad := range map[string][]byte{
		"empty": nil, "a list": []byte("[]"), "bytes after it": append(bytes.Clone(hello), 'x'),
		"twice":          bytes.Replace(hello, []byte("{"), []byte(`{"versions":[2],`), 1),
		"more":           bytes.Replace(hello, []byte("{"), []byte(`{"more":1,`), 1),
		"missing":        bytes.Replace(hello, []byte(`"versions":[2],`), nil, 1),
		"a float":        bytes.Replace(hello, []byte("[2]"), []byte("[2.0]"), 1),
		"falling":        bytes.Replace(hello, []byte("[2]"), []byte("[2,1]"), 1),
		"doubled":        bytes.Replace(hello, []byte("[2]"), []byte("[2,2]"), 1),
		"text":           bytes.Replace(hello, []byte("[2]"), []byte(`["2"]`), 1),
		"no padding":     bytes.Replace(hello, []byte(nonce), []byte(strings.TrimRight(nonce, "=")), 1),
		"a line break":   bytes.Replace(hello, []byte(nonce), []byte(nonce[:4]+`\n`+nonce[4:]), 1),
		"invalid UTF-8":  bytes.Replace(hello, []byte(`"nonce"`), []byte("\"nonc\xff\""), 1),
		"deep":           bytes.Replace(hello, []byte("[2]"), []byte(strings.Repeat("[", 999)+strings.Repeat("]", 999)), 1),
		"reserved bytes": altered(t, hello, "target_info", EncodeBase64(append(make([]byte, 511), 1))),
	} {
		_, err := c.holder.onHello(bad)
		if CodeOf(err) != CodeMessageMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := c.holder.onHello(append(hello, bytes.Repeat([]byte{' '}, smallMessageBytesMax)...))
	needCode(t, CodeMessageTooLarge, err)
	_, err = c.holder.onHello(bytes.Replace(hello, []byte("[2]"), []byte("[1,9]"), 1))
	needCode(t, CodeVersionUnsupported, err)
	_, err = c.holder.onHello(altered(t, hello, "genesis", EncodeBase64(make([]byte, 32))))
	needCode(t, CodeGenesisMismatch, err)
	if _, err := c.holder.onHello(bytes.Replace(hello, []byte("[2]"), []byte("[1, 2, 3]"), 1)); err != nil {
		t.Error("a hello that offers more was refused:", err)
	}
}

func TestOnlyDocumentedErrorsCarryACode(t *testing.T) {
	if CodeOf(errTest) != "" || IsTransient(errTest) {
		t.Error("a foreign error has a code")
	}
	wrapped := fmt.Errorf("more: %w", rejected(CodeReceiptBad, "a", "b"))
	needCode(t, CodeReceiptBad, wrapped)
	if shown := told(errors.New("secret")); strings.Contains(shown.Error(), "secret") || shown.Kind != Invariant {
		t.Errorf("a peer is told %v", shown)
	}
}

// EncodeBase64 returns standard base64.
func EncodeBase64(data []byte) string { return base64.StdEncoding.EncodeToString(data) }

func (c conversation) lastSession() []byte {
	var last []byte
	for id, s := range c.holder.sessions.fromOldest {
		if s.requester == idOf(c.requester.node) {
			last = append([]byte(nil), id[:]...)
		}
	}
	return last
}
