package handover

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// KeySetBytesMax is the size of the largest key set.
const KeySetBytesMax = 64 * 1024

const keySetIDTag = "dcupgrade key set v1\x00"

// KeySet is a node's application keys: 1 to 65,536 opaque bytes, and their id.
//
// It cannot be printed or marshalled by accident. Wipe it when you no longer need it.
type KeySet struct {
	data []byte
	id   string
}

// NewKeySet copies data into a new key set. The caller wipes its own copy.
func NewKeySet(data []byte) (*KeySet, error) {
	if len(data) == 0 || len(data) > KeySetBytesMax {
		return nil, rejected(CodeKeySetSize, "the key set was refused",
			fmt.Sprintf("it has %d bytes, allowed are 1 to %d", len(data), KeySetBytesMax))
	}
	own := make([]byte, len(data))
	copy(own, data)
	return &KeySet{data: own, id: keySetID(own)}, nil
}

func keySetID(data []byte) string {
	digest := sha256.New()
	io.WriteString(digest, keySetIDTag)
	digest.Write(data)
	return hex.EncodeToString(digest.Sum(nil))
}

// ID returns the public name of the key set: 64 hex digits.
func (k *KeySet) ID() string { return k.id }

// Bytes returns the keys themselves, not a copy: [KeySet.Wipe] overwrites them. It panics after a wipe.
func (k *KeySet) Bytes() []byte {
	if k.data == nil {
		panic(&Error{CodeKeySetWiped, "the key set cannot be read", "its bytes were already overwritten", "", Invariant})
	}
	return k.data
}

// Clone returns a copy with a life of its own; of nil it is nil.
func (k *KeySet) Clone() *KeySet {
	if k == nil {
		return nil
	}
	return &KeySet{data: append([]byte(nil), k.Bytes()...), id: k.id}
}

// Wipe overwrites the bytes with zeros. It is safe to call twice, and on nil.
func (k *KeySet) Wipe() {
	if k != nil {
		clear(k.data)
		k.data = nil
	}
}

// Equal compares two key sets in constant time.
func (k *KeySet) Equal(other *KeySet) bool {
	return subtle.ConstantTimeCompare(k.Bytes(), other.Bytes()) == 1
}

// String names the key set and shows nothing of it.
func (k *KeySet) String() string { return "KeySet(" + k.id[:8] + "…, not shown)" }

// Format prints the same as String under every verb.
func (k *KeySet) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// MarshalText refuses: a key set is never part of a document.
func (k *KeySet) MarshalText() ([]byte, error) {
	return nil, errors.New("handover: a key set is not marshalled")
}
