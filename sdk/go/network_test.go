package handover

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"strings"
	"testing"

	"handover/sgx"
)

func TestMultibaseHasOneSpelling(t *testing.T) {
	for _, data := range [][]byte{{}, {0}, {1, 2, 3}, bytes.Repeat([]byte{0xff}, 64)} {
		text := EncodeMultibase(data)
		if back, err := DecodeMultibase(text); err != nil || !bytes.Equal(back, data) {
			t.Errorf("%x: %v", data, err)
		}
	}
	for _, text := range []string{"", "aeqcq", "bAE", "bae======", "bab", "b\nae", "bae ", "ba", "b1"} {
		if _, err := DecodeMultibase(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func public(seed byte) ed25519.PublicKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32)).Public().(ed25519.PublicKey)
}

func TestNetworkKeysThatMakeNoSenseAreRefused(t *testing.T) {
	one, two := hex.EncodeToString(public(1)), EncodeMultibase(public(2))
	for name, c := range map[string]struct {
		threshold int
		texts     []string
	}{
		"none": {1, nil}, "no threshold": {0, []string{one}}, "too high": {3, []string{one, two}},
		"twice": {1, []string{one, "0x" + one}}, "short": {1, []string{one[2:]}}, "not text of a key": {1, []string{"?"}},
		"small order": {1, []string{strings.Repeat("00", 32)}}, "small order, sign bit": {1, []string{"01" + strings.Repeat("00", 30) + "80"}},
		"order 8": {1, []string{smallOrderYOfOrder8}}, "not canonical": {1, []string{"ee" + strings.Repeat("ff", 30) + "7f"}},
		"upper case": {1, []string{strings.ToUpper(one)}},
	} {
		if _, err := ParseNetworkKeys(c.threshold, c.texts...); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := ParseNetworkKeys(2, one, two); err != nil {
		t.Error(err)
	}
}

func TestASignatureCountsOncePerKeyAndStrangersArePassedOver(t *testing.T) {
	id := sgx.EnclaveID{5}
	sign := func(seed byte) []byte {
		return ed25519.Sign(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32)), []byte(id.String()))
	}
	keys, err := ParseNetworkKeys(2, hex.EncodeToString(public(1)), hex.EncodeToString(public(2)))
	if err != nil {
		t.Fatal(err)
	}
	for want, signatures := range map[Code][][]byte{
		"":                     {sign(9), sign(2), sign(1)},
		CodeSignatureThreshold: {sign(1), sign(1), sign(9)},
		CodeSignatureBad:       {sign(9), make([]byte, 64), make([]byte, 3)},
		CodeSignatureMissing:   nil,
	} {
		needCode(t, want, keys.verify(id, signatures))
	}
	needCode(t, CodeSignatureBad, NetworkKeys{}.verify(id, [][]byte{sign(1)}))
	needCode(t, CodeSignatureBad, keys.verify(sgx.EnclaveID{6}, [][]byte{sign(1), sign(2)}))
}

func TestASignatureFileHoldsOneOrSeveral(t *testing.T) {
	one := EncodeMultibase(make([]byte, 64))
	if got, err := DecodeSignatures(" " + one + "\n\n" + one + "\n"); err != nil || len(got) != 2 {
		t.Error(got, err)
	}
	for _, text := range []string{"", "x", EncodeMultibase(make([]byte, 63)), strings.Repeat(one+" ", 17)} {
		if _, err := DecodeSignatures(text); err == nil {
			t.Errorf("%.20q was taken", text)
		}
	}
}
