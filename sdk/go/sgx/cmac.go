package sgx

import (
	"crypto/aes"
	"crypto/subtle"
)

// CMAC returns AES-128-CMAC (NIST SP 800-38B) of data under a 16-byte key.
func CMAC(key [KeySize]byte, data []byte) [16]byte {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // only a key of another length is refused
	}
	var zero, mac [16]byte
	var subkey [16]byte
	block.Encrypt(subkey[:], zero[:])
	double(&subkey)
	for len(data) > 16 {
		subtle.XORBytes(mac[:], mac[:], data[:16])
		block.Encrypt(mac[:], mac[:])
		data = data[16:]
	}
	var last [16]byte
	if n := copy(last[:], data); n < 16 {
		last[n] = 0x80
		double(&subkey)
	}
	subtle.XORBytes(last[:], last[:], subkey[:])
	subtle.XORBytes(mac[:], mac[:], last[:])
	block.Encrypt(mac[:], mac[:])
	return mac
}

// double multiplies by x in GF(2^128), without branching on the value.
func double(v *[16]byte) {
	var carry byte
	for i := 15; i >= 0; i-- {
		carry, v[i] = v[i]>>7, v[i]<<1|carry
	}
	v[15] ^= carry * 0x87
}

// ReportMAC returns the MAC that a report must carry under the report key of its target.
func ReportMAC(key [KeySize]byte, report Report) [16]byte {
	return CMAC(key, report.Encode()[:ReportBodySize])
}

// VerifyReportMAC tells whether the report's MAC verifies under key, in constant time.
func VerifyReportMAC(key [KeySize]byte, report Report) bool {
	mac := ReportMAC(key, report)
	return subtle.ConstantTimeCompare(mac[:], report.MAC[:]) == 1
}
