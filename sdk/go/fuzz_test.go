package handover

import (
	"bytes"
	"reflect"
	"testing"
)

// fuzzDecoder checks that a decoder of messages takes nothing but what encodes to a message that decodes to the same,
// and that whatever it refuses is refused with a code of the protocol.
func fuzzDecoder[T any](f *testing.F, name string, decode func([]byte) (T, error)) {
	f.Helper()
	c := newConversation(f, newNode(f, "node"), newNode(f, "vault"), "")
	said := map[string][]byte{"hello": c.requester.hello(), "challenge": c.challenge()}
	request, err := c.requester.onChallenge(said["challenge"])
	if err != nil {
		f.Fatal(err)
	}
	said["request"] = request
	if said["delivery"], err = c.answer(request); err != nil {
		f.Fatal(err)
	}
	if _, err := c.requester.onDelivery(said["delivery"]); err != nil {
		f.Fatal(err)
	}
	said["received"] = c.requester.received()
	if said["durable"], err = c.requester.durable(true); err != nil {
		f.Fatal(err)
	}
	said["acknowledgement"] = encode(acknowledgement{c.requester.session, "received"})
	if _, err := decode(said[name]); err != nil {
		f.Fatal("the seed is refused: ", err)
	}
	for _, message := range said {
		f.Add(message)
	}
	f.Add([]byte(`{"a":{"a":[1e999,"\ud800",null]},"a":0}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		message, err := decode(body)
		if err != nil {
			if code := CodeOf(err); code != CodeMessageMalformed && code != CodeMessageTooLarge {
				t.Errorf("refused with %v", err)
			}
			return
		}
		again, err := decode(encode(message))
		if err != nil || !reflect.DeepEqual(again, message) {
			t.Errorf("%+v decodes again to %+v, %v", message, again, err)
		}
	})
}

func FuzzDecodeHello(f *testing.F)     { fuzzDecoder(f, "hello", decodeHello) }
func FuzzDecodeChallenge(f *testing.F) { fuzzDecoder(f, "challenge", decodeChallenge) }
func FuzzDecodeDelivery(f *testing.F)  { fuzzDecoder(f, "delivery", decodeDelivery) }
func FuzzDecodeReceived(f *testing.F)  { fuzzDecoder(f, "received", decodeReceived) }
func FuzzDecodeDurable(f *testing.F)   { fuzzDecoder(f, "durable", decodeDurable) }
func FuzzDecodeAcknowledgement(f *testing.F) {
	fuzzDecoder(f, "acknowledgement", decodeAcknowledgement)
}

func FuzzDecodeRequest(f *testing.F) {
	fuzzDecoder(f, "request", func(body []byte) (requestMessage, error) {
		_, value, err := openRequest(body)
		if err != nil {
			return requestMessage{}, err
		}
		return decodeRequest(value)
	})
}

func FuzzSealedFile(f *testing.F) {
	key := [16]byte{1}
	file, err := sealedHeader{epoch: 7, request: sealRequest()}.seal(key, []byte("keys"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Fuzz(func(t *testing.T, data []byte) {
		header, err := decodeSealedHeader(data)
		if err != nil {
			needCode(t, CodeStoreFormatInvalid, err)
			return
		}
		if !bytes.Equal(header.encode(), data[:sealedHeaderBytes]) {
			t.Error("a decoded header encodes to other bytes")
		}
		if _, err := header.open(key, data); err != nil {
			needCode(t, CodeStoreUnsealFailed, err)
		}
	})
}

func FuzzMultibase(f *testing.F) {
	f.Add("bl3kr5jjklu2iijnmyhz7cy5lz3h5xhrlp7sim54bjhc4v3ztzfdq")
	f.Fuzz(func(t *testing.T, text string) {
		if data, err := DecodeMultibase(text); err == nil && EncodeMultibase(data) != text {
			t.Errorf("%q is a second spelling", text)
		}
	})
}

func FuzzV1(f *testing.F) {
	node := newNode(f, "node")
	hello, err := newRequesterV1(node, node.NetworkSignatures[0]).hello()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(hello)
	f.Add([]byte(`{"EnclaveSignature":"","EncryptSecret":"AA==","Pubkey":"","LocalReport":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if report, err := decodeReportV1(data); err == nil && !bytes.Equal(encodeReportV1(report), data) {
			t.Error("a decoded v1 report encodes to other bytes")
		}
		if keys, err := newRequesterV1(node, nil).open(data); err == nil || keys != nil || CodeOf(err) == "" {
			t.Errorf("an answer without a challenge gave %v, %v", keys, err)
		}
	})
}

func FuzzRefusal(f *testing.F) {
	f.Add([]byte(`{"code":"A_B","what":"a","why":"b","action":"c","kind":"transient"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if refusal := errorOf(body); refusal != nil {
			if bytes.ContainsAny([]byte(refusal.Error()), "\n\r\x1b") || refusal.Kind == Invariant {
				t.Errorf("%q", refusal)
			}
		}
	})
}
