package nacl

import "math/big"

// Arithmetic on edwards25519 for public keys only: math/big takes other time for other values.
var (
	prime  = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	curveD = mod(new(big.Int).Mul(big.NewInt(-121665), new(big.Int).ModInverse(big.NewInt(121666), prime)))
	// order is that of the main subgroup: 2^252 + 27742317777372353535851937790883648493.
	order, _ = new(big.Int).SetString("1000000000000000000000000000000014def9dea2f79cd65812631a5cf5d3ed", 16)
	one      = big.NewInt(1)
)

func mod(v *big.Int) *big.Int            { return v.Mod(v, prime) }
func mul(a, b *big.Int) *big.Int         { return mod(new(big.Int).Mul(a, b)) }
func add(a, b *big.Int) *big.Int         { return mod(new(big.Int).Add(a, b)) }
func sub(a, b *big.Int) *big.Int         { return mod(new(big.Int).Sub(a, b)) }
func div(a, b *big.Int) *big.Int         { return mul(a, new(big.Int).ModInverse(b, prime)) }
func isNeutral(p point) bool             { return p.x.Sign() == 0 && p.y.Cmp(p.z) == 0 }
func littleEndian(data []byte) *big.Int  { return new(big.Int).SetBytes(reversed(data)) }
func bigEndian(v *big.Int, n int) []byte { return v.FillBytes(make([]byte, n)) }

func reversed(data []byte) []byte {
	out := make([]byte, len(data))
	for i, b := range data {
		out[len(data)-1-i] = b
	}
	return out
}

// point is in projective coordinates: (x/z, y/z).
type point struct{ x, y, z *big.Int }

// plus adds two points by the complete law of a = -1 twisted Edwards curves.
func (p point) plus(q point) point {
	a := mul(p.z, q.z)
	b := mul(a, a)
	c := mul(p.x, q.x)
	d := mul(p.y, q.y)
	e := mul(curveD, mul(c, d))
	f, g := sub(b, e), add(b, e)
	cross := sub(sub(mul(add(p.x, p.y), add(q.x, q.y)), c), d)
	return point{mul(a, mul(f, cross)), mul(a, mul(g, add(d, c))), mul(f, g)}
}

func (p point) times(k *big.Int) point {
	result := point{new(big.Int), one, one}
	for i := k.BitLen() - 1; i >= 0; i-- {
		result = result.plus(result)
		if k.Bit(i) == 1 {
			result = result.plus(p)
		}
	}
	return result
}

// montgomery returns the X25519 key of an ed25519 public key: u = (1+y)/(1-y).
//
// Refused, as by libsodium, are encodings of no point, points of small order, and points outside the main subgroup.
func montgomery(public []byte) ([]byte, error) {
	if len(public) != KeySize {
		return nil, ErrKey
	}
	encoded := append([]byte(nil), public...)
	encoded[KeySize-1] &= 0x7f
	y := mod(littleEndian(encoded))
	ySquared := mul(y, y)
	// x² = (y² - 1) / (d·y² + 1); the sign of x does not matter to u.
	x := new(big.Int).ModSqrt(div(sub(ySquared, one), add(mul(curveD, ySquared), one)), prime)
	if x == nil || x.Sign() == 0 { // no point, or one of order 1 or 2
		return nil, ErrKey
	}
	if p := (point{x, y, one}); isNeutral(p.times(big.NewInt(8))) || !isNeutral(p.times(order)) {
		return nil, ErrKey
	}
	return reversed(bigEndian(div(add(one, y), sub(one, y)), KeySize)), nil
}
