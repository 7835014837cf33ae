package handovertest

import (
	"crypto/ed25519"
	"crypto/rand"

	"handover"
	"handover/sgx"
)

// Network is a DC network: the key that signs enclave ids.
type Network struct{ key ed25519.PrivateKey }

// NewNetwork draws a key.
func NewNetwork() Network {
	_, key, _ := ed25519.GenerateKey(rand.Reader) // fails only where the random source does
	return Network{key}
}

// NetworkFromSeed returns the network of a 32-byte seed, for known answers.
func NetworkFromSeed(seed []byte) Network { return Network{ed25519.NewKeyFromSeed(seed)} }

// Keys returns the network's key as a policy takes it.
func (n Network) Keys() handover.NetworkKeys {
	keys, err := handover.ParseNetworkKeys(1, handover.EncodeMultibase(n.key.Public().(ed25519.PublicKey)))
	if err != nil {
		panic(err) // a key that was just drawn is usable
	}
	return keys
}

// Sign returns the network's signature over an enclave id.
func (n Network) Sign(id sgx.EnclaveID) []byte { return ed25519.Sign(n.key, []byte(id.String())) }
