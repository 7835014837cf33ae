package nacl

import (
	"encoding/binary"
	"math/bits"
)

// poly1305 returns the tag of a message under a one-time key, in time that depends on the length only.
//
// The accumulator is three 64-bit limbs, h0 + h1·2⁶⁴ + h2·2¹²⁸, kept below a few times 2¹³⁰ and reduced modulo 2¹³⁰ - 5.
func poly1305(key *[32]byte, message []byte) (tag [16]byte) {
	r0 := binary.LittleEndian.Uint64(key[0:]) & 0x0ffffffc0fffffff
	r1 := binary.LittleEndian.Uint64(key[8:]) & 0x0ffffffc0ffffffc
	var h0, h1, h2 uint64
	for len(message) > 0 {
		var part [17]byte
		n := copy(part[:16], message)
		part[n] = 1
		message = message[n:]
		var carry uint64
		h0, carry = bits.Add64(h0, binary.LittleEndian.Uint64(part[0:]), 0)
		h1, carry = bits.Add64(h1, binary.LittleEndian.Uint64(part[8:]), carry)
		h2 += carry + uint64(part[16])
		h0, h1, h2 = multiply(h0, h1, h2, r0, r1)
	}
	h0, h1 = reduce(h0, h1, h2)
	h0, carry := bits.Add64(h0, binary.LittleEndian.Uint64(key[16:]), 0)
	h1, _ = bits.Add64(h1, binary.LittleEndian.Uint64(key[24:]), carry)
	binary.LittleEndian.PutUint64(tag[0:], h0)
	binary.LittleEndian.PutUint64(tag[8:], h1)
	return tag
}

// multiply returns h·r modulo 2¹³⁰ - 5, not fully reduced. The clamped r keeps every sum below from overflowing, since
// r0, r1 < 2⁶⁰ and h2 is a few bits.
func multiply(h0, h1, h2, r0, r1 uint64) (uint64, uint64, uint64) {
	// Four limbs of the product, each the sum of 128-bit products.
	hi00, lo00 := bits.Mul64(h0, r0)
	hi01, lo01 := bits.Mul64(h0, r1)
	hi10, lo10 := bits.Mul64(h1, r0)
	hi11, lo11 := bits.Mul64(h1, r1)
	lo20, lo21 := h2*r0, h2*r1

	mLo, carry := bits.Add64(lo01, lo10, 0)
	mHi, _ := bits.Add64(hi01, hi10, carry)
	nLo, carry := bits.Add64(lo11, lo20, 0)
	nHi := hi11 + carry

	t0 := lo00
	t1, carry := bits.Add64(mLo, hi00, 0)
	t2, carry := bits.Add64(nLo, mHi, carry)
	t3, _ := bits.Add64(lo21, nHi, carry)

	// t = low 130 bits + c·2¹³⁰, and 2¹³⁰ is 5: add c·4 (the high bits as they lie) and c.
	h0, h1, h2 = t0, t1, t2&3
	cLo, cHi := t2&^3, t3
	h0, carry = bits.Add64(h0, cLo, 0)
	h1, carry = bits.Add64(h1, cHi, carry)
	h2 += carry
	cLo, cHi = cLo>>2|cHi<<62, cHi>>2
	h0, carry = bits.Add64(h0, cLo, 0)
	h1, carry = bits.Add64(h1, cHi, carry)
	return h0, h1, h2 + carry
}

// reduce returns the low 128 bits of h modulo 2¹³⁰ - 5.
func reduce(h0, h1, h2 uint64) (uint64, uint64) {
	t0, borrow := bits.Sub64(h0, ^uint64(4), 0)
	t1, borrow := bits.Sub64(h1, ^uint64(0), borrow)
	_, borrow = bits.Sub64(h2, 3, borrow)
	keep := -borrow // all ones where h was below the modulus
	return h0&keep | t0&^keep, h1&keep | t1&^keep
}
