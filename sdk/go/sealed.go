package handover

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"handover/sgx"
)

// The format of a sealed file, the same as that of the vault's store. Little-endian; the header of 652 bytes is
// authenticated as associated data:
//
//	0:8     magic "DCSEALED"
//	8:2     format version, 1
//	10:2    kind, 1 for a key set
//	12:8    epoch, rises with every write of the same name
//	20:512  the whole KEYREQUEST (CPUSVN, KEYID, policy MRENCLAVE) that gives the seal key back
//	532:32  MRENCLAVE of the enclave that sealed
//	564:32  MRENCLAVE of the enclave that the key set came from
//	596:32  name: the key set id
//	628:12  AES-GCM nonce
//	640:4   length of the plaintext
//	644:8   zero
//	652     ciphertext, then the 16-byte tag, and nothing after it
//
// The key is HKDF-SHA256(seal key, salt = KEYID, info = tag, MRENCLAVE, kind). KEYID is random per write.
const (
	sealedMagic       = "DCSEALED"
	sealedFormat      = 1
	sealedKeySet      = 1
	sealedHeaderBytes = 652
	sealedTagBytes    = 16
	sealedInfo        = "dcupgrade sealed store v1\x00"
	sealedBytesMax    = sealedHeaderBytes + KeySetBytesMax + sealedTagBytes
)

type sealedHeader struct {
	epoch   uint64
	request sgx.KeyRequest
	sealer  sgx.EnclaveID
	source  sgx.EnclaveID
	name    [32]byte
	nonce   [12]byte
	length  uint32
}

func (h sealedHeader) encode() []byte {
	data := make([]byte, 0, sealedHeaderBytes)
	data = append(data, sealedMagic...)
	data = binary.LittleEndian.AppendUint16(data, sealedFormat)
	data = binary.LittleEndian.AppendUint16(data, sealedKeySet)
	data = binary.LittleEndian.AppendUint64(data, h.epoch)
	data = append(data, h.request.Encode()...)
	data = append(data, h.sealer[:]...)
	data = append(data, h.source[:]...)
	data = append(data, h.name[:]...)
	data = append(data, h.nonce[:]...)
	data = binary.LittleEndian.AppendUint32(data, h.length)
	return append(data, make([]byte, 8)...)
}

// decodeSealedHeader judges the form of a whole sealed file; it proves nothing before the file is opened.
func decodeSealedHeader(data []byte) (sealedHeader, error) {
	var h sealedHeader
	if len(data) < sealedHeaderBytes+sealedTagBytes || len(data) > sealedBytesMax {
		return h, sealedInvalid(fmt.Sprintf("it has %d bytes", len(data)))
	}
	if string(data[:8]) != sealedMagic || binary.LittleEndian.Uint16(data[8:]) != sealedFormat ||
		binary.LittleEndian.Uint16(data[10:]) != sealedKeySet || binary.LittleEndian.Uint64(data[644:]) != 0 {
		return h, sealedInvalid("its magic, format, kind or reserved bytes are wrong")
	}
	request, err := sgx.DecodeKeyRequest(data[20:532])
	// Under a weaker policy another enclave could open what this one wrote, or make this one open what another wrote.
	if err != nil || request.KeyName != sgx.SealKey || request.KeyPolicy != sgx.PolicyMRENCLAVE {
		return h, sealedInvalid("its KEYREQUEST does not ask for a seal key under the MRENCLAVE policy")
	}
	h.epoch = binary.LittleEndian.Uint64(data[12:])
	h.request = request
	copy(h.sealer[:], data[532:])
	copy(h.source[:], data[564:])
	copy(h.name[:], data[596:])
	copy(h.nonce[:], data[628:])
	h.length = binary.LittleEndian.Uint32(data[640:])
	if len(data) != sealedHeaderBytes+int(h.length)+sealedTagBytes {
		return h, sealedInvalid("its length is not the one its header names")
	}
	return h, nil
}

func sealedInvalid(why string) *Error {
	return &Error{
		CodeStoreFormatInvalid, "a sealed file was refused", why,
		"It is kept as it is. Look at the disk and at what else writes into the store's folder.", Invariant,
	}
}

// seal returns the whole file for a plaintext.
func (h sealedHeader) seal(sealKey [sgx.KeySize]byte, plaintext []byte) ([]byte, error) {
	aead, err := h.aead(sealKey)
	if err != nil {
		return nil, err
	}
	h.length = uint32(len(plaintext))
	header := h.encode()
	return aead.Seal(header, h.nonce[:], plaintext, header), nil
}

// open returns the plaintext of a whole file; the caller wipes it.
func (h sealedHeader) open(sealKey [sgx.KeySize]byte, data []byte) ([]byte, error) {
	aead, err := h.aead(sealKey)
	if err != nil {
		return nil, err
	}
	plaintext, err := aead.Open(nil, h.nonce[:], data[sealedHeaderBytes:], data[:sealedHeaderBytes])
	if err != nil {
		return nil, &Error{
			CodeStoreUnsealFailed, "a sealed file does not open",
			"its authentication tag does not fit this enclave's seal key: damaged, or from another CPU",
			"It is kept. Restore the CPU's root keys or the file; the other generation is tried first.", Invariant,
		}
	}
	return plaintext, nil
}

func (h sealedHeader) aead(sealKey [sgx.KeySize]byte) (cipher.AEAD, error) {
	info := sealedInfo + string(h.sealer[:]) + "\x01\x00"
	return newAEAD(sealKey[:], h.request.KeyID[:], info)
}

// newAEAD returns AES-256-GCM under HKDF-SHA256 of a secret.
func newAEAD(secret, salt []byte, info string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, secret, salt, info, 32)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
