package nacl

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
)

// Sizes in bytes. A box is the nonce, the ephemeral X25519 key, the tag and the ciphertext.
const (
	NonceSize = 24
	KeySize   = 32
	Overhead  = NonceSize + KeySize + 16
)

var (
	// ErrKey is returned for a public key that is not a point of the main subgroup of edwards25519.
	ErrKey = errors.New("nacl: the key is not a point of ed25519, or is of low order")
	// ErrOpen is returned for a box that does not open.
	ErrOpen = errors.New("nacl: the box does not open")
)

// Seal encrypts a plaintext to an ed25519 public key. nonce and ephemeral, an X25519 secret, are used once.
func Seal(recipient, plaintext []byte, nonce *[NonceSize]byte, ephemeral *[KeySize]byte) ([]byte, error) {
	public, err := montgomery(recipient)
	if err != nil {
		return nil, err
	}
	own, err := ecdh.X25519().NewPrivateKey(ephemeral[:])
	if err != nil {
		return nil, err
	}
	key, err := agree(own, public)
	if err != nil {
		return nil, ErrKey
	}
	out := append(append(make([]byte, 0, Overhead+len(plaintext)), nonce[:]...), own.PublicKey().Bytes()...)
	stream, macKey := start(key, nonce[:])
	ciphertext := make([]byte, len(plaintext))
	stream.xor(ciphertext, plaintext)
	tag := poly1305(&macKey, ciphertext)
	return append(append(out, tag[:]...), ciphertext...), nil
}

// Open decrypts a box that was encrypted to the ed25519 key of seed. The caller wipes the plaintext.
func Open(seed, box []byte) ([]byte, error) {
	if len(box) < Overhead || len(seed) != ed25519.SeedSize {
		return nil, ErrOpen
	}
	digest := sha512.Sum512(seed)
	defer clear(digest[:])
	own, err := ecdh.X25519().NewPrivateKey(digest[:KeySize]) // clamped by the agreement itself
	if err != nil {
		return nil, ErrOpen
	}
	key, err := agree(own, box[NonceSize:NonceSize+KeySize])
	if err != nil {
		return nil, ErrOpen
	}
	stream, macKey := start(key, box[:NonceSize])
	ciphertext := box[Overhead:]
	tag := poly1305(&macKey, ciphertext)
	if subtle.ConstantTimeCompare(tag[:], box[NonceSize+KeySize:Overhead]) != 1 {
		return nil, ErrOpen
	}
	plaintext := make([]byte, len(ciphertext))
	stream.xor(plaintext, ciphertext)
	return plaintext, nil
}

// agree returns the key of a NaCl box between two X25519 keys.
func agree(own *ecdh.PrivateKey, public []byte) (*[32]byte, error) {
	peer, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	shared, err := own.ECDH(peer)
	if err != nil {
		return nil, err
	}
	defer clear(shared)
	var zero [16]byte
	key := hsalsa20((*[32]byte)(shared), &zero)
	return &key, nil
}

// keyStream is XSalsa20's key stream; its first 32 bytes were taken for the MAC.
type keyStream struct {
	key     [32]byte
	nonce   []byte
	rest    []byte
	counter uint64
}

func start(key *[32]byte, nonce []byte) (*keyStream, [32]byte) {
	subkey := hsalsa20(key, (*[16]byte)(nonce))
	first := block(&subkey, nonce[16:], 0)
	return &keyStream{subkey, nonce[16:], first[32:], 1}, [32]byte(first[:32])
}

func (s *keyStream) xor(out, in []byte) {
	for len(in) > 0 {
		if len(s.rest) == 0 {
			next := block(&s.key, s.nonce, s.counter)
			s.rest, s.counter = next[:], s.counter+1
		}
		n := subtle.XORBytes(out, in, s.rest)
		out, in, s.rest = out[n:], in[n:], s.rest[n:]
	}
}
