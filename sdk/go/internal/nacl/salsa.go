// Package nacl has the box of handover v1: XSalsa20-Poly1305 under an X25519 agreement, encrypted to an ed25519 key.
//
// The standard library has neither XSalsa20 nor Poly1305 for use by others. What is here is checked against published
// known answers and against boxes of the Go library that nodes in the field use.
package nacl

import (
	"encoding/binary"
	"math/bits"
)

var sigma = [4]uint32{0x61707865, 0x3320646e, 0x79622d32, 0x6b206574}

// rounds is the 20 rounds of Salsa20 without the final addition.
func rounds(x *[16]uint32) {
	for range 10 {
		quarter(x, 0, 4, 8, 12)
		quarter(x, 5, 9, 13, 1)
		quarter(x, 10, 14, 2, 6)
		quarter(x, 15, 3, 7, 11)
		quarter(x, 0, 1, 2, 3)
		quarter(x, 5, 6, 7, 4)
		quarter(x, 10, 11, 8, 9)
		quarter(x, 15, 12, 13, 14)
	}
}

func quarter(x *[16]uint32, a, b, c, d int) {
	x[b] ^= bits.RotateLeft32(x[a]+x[d], 7)
	x[c] ^= bits.RotateLeft32(x[b]+x[a], 9)
	x[d] ^= bits.RotateLeft32(x[c]+x[b], 13)
	x[a] ^= bits.RotateLeft32(x[d]+x[c], 18)
}

// state lays out the input of Salsa20: constants on the diagonal, key, and 16 bytes of nonce and counter.
func state(key *[32]byte, input *[16]byte) (x [16]uint32) {
	x[0], x[5], x[10], x[15] = sigma[0], sigma[1], sigma[2], sigma[3]
	for i := range 4 {
		x[1+i] = binary.LittleEndian.Uint32(key[4*i:])
		x[11+i] = binary.LittleEndian.Uint32(key[16+4*i:])
		x[6+i] = binary.LittleEndian.Uint32(input[4*i:])
	}
	return x
}

// hsalsa20 derives a key from a key and 16 bytes.
func hsalsa20(key *[32]byte, input *[16]byte) (out [32]byte) {
	x := state(key, input)
	rounds(&x)
	for i, word := range []int{0, 5, 10, 15, 6, 7, 8, 9} {
		binary.LittleEndian.PutUint32(out[4*i:], x[word])
	}
	return out
}

// block returns the 64 bytes of Salsa20's key stream at a counter, for an 8-byte nonce.
func block(key *[32]byte, nonce []byte, counter uint64) (out [64]byte) {
	var input [16]byte
	copy(input[:8], nonce)
	binary.LittleEndian.PutUint64(input[8:], counter)
	start := state(key, &input)
	x := start
	rounds(&x)
	for i := range x {
		binary.LittleEndian.PutUint32(out[4*i:], x[i]+start[i])
	}
	return out
}
