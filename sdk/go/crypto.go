package handover

import (
	"crypto/hmac"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
)

// primitives is the randomness and HPKE of the handover; the known-answer tests replace parts of it.
type primitives struct {
	random      func(size int) []byte
	kemGenerate func() (hpke.PrivateKey, error)
	kemSeal     func(publicKey, info, plaintext []byte) ([]byte, error)
}

var realPrimitives = primitives{randomBytes, hpke.MLKEM768X25519().GenerateKey, kemSeal}

func randomBytes(size int) []byte {
	data := make([]byte, size)
	rand.Read(data) // never fails
	return data
}

// kemSeal returns encapsulation and AEAD output of HPKE base mode.
func kemSeal(publicKey, info, plaintext []byte) ([]byte, error) {
	key, err := hpke.MLKEM768X25519().NewPublicKey(publicKey)
	if err == nil {
		var ciphertext []byte
		if ciphertext, err = hpke.Seal(key, hpke.HKDFSHA256(), hpke.AES256GCM(), info, plaintext); err == nil {
			return ciphertext, nil
		}
	}
	return nil, malformed("request", "its KEM public key is not an ML-KEM-768 and X25519 key")
}

// kemOpen returns the plaintext; the caller wipes it.
func kemOpen(key hpke.PrivateKey, info, ciphertext []byte) ([]byte, error) {
	plaintext, err := hpke.Open(key, hpke.HKDFSHA256(), hpke.AES256GCM(), info, ciphertext)
	if err != nil {
		return nil, rejected(CodeCiphertextBad, "the delivery was refused",
			"its ciphertext does not open with this session's key and transcript")
	}
	return plaintext, nil
}

// receipt returns the MAC of the received message.
func receipt(key []byte, state transcript) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(receivedTag))
	mac.Write(state[:])
	return mac.Sum(nil)
}
