package handover

import (
	"crypto/ed25519"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"

	"handover/sgx"
)

const (
	networkKeysMax      = 64
	signaturesGivenMax  = 64
	multibaseCharsMax   = 128 * 1024
	smallOrderYOfOrder8 = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"
)

var multibase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// EncodeMultibase returns multibase base32: prefix b, lower case, no padding.
func EncodeMultibase(data []byte) string { return "b" + multibase32.EncodeToString(data) }

// DecodeMultibase decodes multibase base32 in its one canonical spelling.
func DecodeMultibase(text string) ([]byte, error) {
	if len(text) <= multibaseCharsMax && strings.HasPrefix(text, "b") {
		data, err := multibase32.DecodeString(text[1:])
		if err == nil && EncodeMultibase(data) == text {
			return data, nil
		}
	}
	return nil, rejected(CodeMultibaseInvalid, "a multibase value cannot be read",
		"it is not canonical base32 behind the prefix b: lower case, no padding")
}

// DecodeSignatures reads a file of network signatures: multibase texts, one or several, separated by white space.
func DecodeSignatures(text string) ([][]byte, error) {
	var signatures [][]byte
	for _, word := range strings.Fields(text) {
		signature, err := DecodeMultibase(word)
		if err != nil {
			return nil, err
		}
		if len(signature) != signatureBytes {
			return nil, rejected(CodeSignatureBad, "a network signature cannot be used",
				fmt.Sprintf("it has %d bytes instead of %d", len(signature), signatureBytes))
		}
		signatures = append(signatures, signature)
	}
	if len(signatures) == 0 || len(signatures) > signaturesMax {
		return nil, rejected(CodeSignatureMissing, "the network signatures cannot be used",
			fmt.Sprintf("there are %d instead of 1 to %d", len(signatures), signaturesMax))
	}
	return signatures, nil
}

// NetworkKeys is the network's ed25519 keys, and how many of them must have signed an enclave id.
type NetworkKeys struct {
	keys      []ed25519.PublicKey
	threshold int
}

// ParseNetworkKeys reads keys in multibase base32, or as 64 hex digits with or without 0x.
func ParseNetworkKeys(threshold int, texts ...string) (NetworkKeys, error) {
	keys := make([]ed25519.PublicKey, 0, len(texts))
	seen := map[string]bool{}
	for _, text := range texts {
		key, err := hex.DecodeString(strings.TrimPrefix(text, "0x"))
		if err != nil || strings.ToLower(text) != text {
			if key, err = DecodeMultibase(text); err != nil {
				return NetworkKeys{}, err
			}
		}
		switch {
		case len(key) != ed25519.PublicKeySize:
			return NetworkKeys{}, keysInvalid("a key is not 32 bytes")
		case seen[string(key)]:
			return NetworkKeys{}, keysInvalid("a key is there twice, and would count twice")
		case orderIsSmall(key):
			return NetworkKeys{}, keysInvalid("a key is a point of small order: anybody can sign for it")
		}
		seen[string(key)] = true
		keys = append(keys, key)
	}
	if len(keys) == 0 || len(keys) > networkKeysMax || threshold < 1 || threshold > len(keys) {
		return NetworkKeys{}, keysInvalid(fmt.Sprintf("the threshold is %d for %d keys", threshold, len(keys)))
	}
	return NetworkKeys{keys, threshold}, nil
}

func keysInvalid(why string) *Error {
	return rejected(CodeNetworkKeysInvalid, "the network keys cannot be used", why)
}

// verify verifies the network's signatures over an enclave id: the 64 ASCII bytes of its hex form.
//
// Signatures by others are passed over, since anybody may append one. Each key counts once.
func (n NetworkKeys) verify(id sgx.EnclaveID, signatures [][]byte) error {
	what := "enclave " + id.String() + " is not accepted by the network"
	if len(signatures) == 0 {
		return rejected(CodeSignatureMissing, what, "there is no network signature")
	}
	signed := 0
	for _, key := range n.keys {
		if signedBy(key, id, signatures[:min(len(signatures), signaturesGivenMax)]) {
			signed++
		}
	}
	switch {
	case n.threshold > 0 && signed >= n.threshold: // the zero value accepts nobody
		return nil
	case signed == 0:
		err := rejected(CodeSignatureBad, what,
			fmt.Sprintf("none of %d signatures is by a network key over this id", len(signatures)))
		err.Action = "Compare the network keys in the settings with the network's."
		return err
	}
	err := rejected(CodeSignatureThreshold, what,
		fmt.Sprintf("%d network keys signed it, %d are needed", signed, n.threshold))
	err.Action = "Wait for more signatures."
	return err
}

func signedBy(key ed25519.PublicKey, id sgx.EnclaveID, signatures [][]byte) bool {
	for _, signature := range signatures {
		if ed25519.Verify(key, []byte(id.String()), signature) {
			return true
		}
	}
	return false
}

// orderIsSmall tells whether an encoded point has order 1, 2, 4 or 8, in any encoding.
func orderIsSmall(key []byte) bool {
	p := fieldPrime()
	y := new(big.Int).Mod(littleEndian(clearSign(key)), p)
	order8, _ := hex.DecodeString(smallOrderYOfOrder8)
	y8 := littleEndian(order8)
	one := big.NewInt(1)
	for _, small := range []*big.Int{
		new(big.Int), one, new(big.Int).Sub(p, one), y8, new(big.Int).Sub(p, y8),
	} {
		if y.Cmp(small) == 0 {
			return true
		}
	}
	return false
}

func fieldPrime() *big.Int {
	p := new(big.Int).Lsh(big.NewInt(1), 255)
	return p.Sub(p, big.NewInt(19))
}

func littleEndian(data []byte) *big.Int {
	reversed := make([]byte, len(data))
	for i, b := range data {
		reversed[len(data)-1-i] = b
	}
	return new(big.Int).SetBytes(reversed)
}

func clearSign(key []byte) []byte {
	y := append([]byte(nil), key...)
	y[len(y)-1] &= 0x7f
	return y
}
