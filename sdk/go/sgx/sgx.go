// Package sgx has the SGX structures that a local attestation needs, and the MAC of a report.
//
// Layouts follow the Intel SDM, volume 3D, chapter 38. All integers are little-endian. A decoder takes exactly the
// structure's length, refuses reserved bytes that are not zero, and encodes back to the same bytes. Decoding proves
// nothing: verify a report with the TEE before you believe any field of it.
package sgx

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
)

// Sizes of the structures in bytes.
const (
	TargetInfoSize = 512
	ReportSize     = 432
	ReportBodySize = 384 // the part of a report that its MAC covers
	ReportDataSize = 64
	KeyRequestSize = 512
	KeySize        = 16
	IDSize         = 32 // MRENCLAVE
)

// Bits of ATTRIBUTES.FLAGS.
const (
	Init         uint64 = 0x1
	Debug        uint64 = 0x2
	Mode64Bit    uint64 = 0x4
	ProvisionKey uint64 = 0x10
	EInitToken   uint64 = 0x20
	CET          uint64 = 0x40
	KSS          uint64 = 0x80
	AEXNotify    uint64 = 0x400
)

const (
	// XFRMLegacy is x87 and SSE: every enclave has both.
	XFRMLegacy uint64 = 0x3
	// XFRMKnown holds the XCR0 bits of plain register state: x87, SSE, AVX, MPX, AVX-512, PKRU, AMX.
	XFRMKnown uint64 = 0x602ff
	// MiscEXINFO is the MISCSELECT bit that reports page faults in the SSA.
	MiscEXINFO uint32 = 0x1
)

// Values of KEYREQUEST.KEYNAME and KEYREQUEST.KEYPOLICY that are used here.
const (
	ReportKey       uint16 = 3
	SealKey         uint16 = 4
	PolicyMRENCLAVE uint16 = 0x01
	policyAll       uint16 = 0x3f
)

var (
	// ErrLength is returned for data of another length than the structure's.
	ErrLength = errors.New("sgx: wrong length")
	// ErrReserved is returned for reserved bytes that are not zero.
	ErrReserved = errors.New("sgx: reserved bytes are not zero")
)

// EnclaveID is an MRENCLAVE.
type EnclaveID [IDSize]byte

// String returns the id as 64 lower-case hex digits, the form in which the chain lists it.
func (id EnclaveID) String() string { return hex.EncodeToString(id[:]) }

// ParseEnclaveID parses 64 lower-case hex digits.
func ParseEnclaveID(text string) (EnclaveID, error) {
	var id EnclaveID
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != IDSize || hex.EncodeToString(raw) != text {
		return id, errors.New("sgx: an enclave id is 64 lower-case hex digits")
	}
	copy(id[:], raw)
	return id, nil
}

// Attributes is ATTRIBUTES (16 bytes), or a mask of the same shape.
type Attributes struct{ Flags, XFRM uint64 }

func (a Attributes) put(b []byte) {
	binary.LittleEndian.PutUint64(b, a.Flags)
	binary.LittleEndian.PutUint64(b[8:], a.XFRM)
}

func attributes(b []byte) Attributes {
	return Attributes{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
}

// TargetInfo is TARGETINFO: the enclave that is to verify a report.
type TargetInfo struct {
	MRENCLAVE     EnclaveID
	Attributes    Attributes
	CETAttributes uint8
	ConfigSVN     uint16
	MiscSelect    uint32
	ConfigID      [64]byte
}

// DecodeTargetInfo decodes 512 bytes.
func DecodeTargetInfo(data []byte) (TargetInfo, error) {
	var t TargetInfo
	if len(data) != TargetInfoSize {
		return t, ErrLength
	}
	if data[49] != 0 || !allZero(data[56:64]) || !allZero(data[128:]) {
		return t, ErrReserved
	}
	copy(t.MRENCLAVE[:], data)
	t.Attributes = attributes(data[32:])
	t.CETAttributes = data[48]
	t.ConfigSVN = binary.LittleEndian.Uint16(data[50:])
	t.MiscSelect = binary.LittleEndian.Uint32(data[52:])
	copy(t.ConfigID[:], data[64:])
	return t, nil
}

// Encode encodes to 512 bytes.
func (t TargetInfo) Encode() []byte {
	data := make([]byte, TargetInfoSize)
	copy(data, t.MRENCLAVE[:])
	t.Attributes.put(data[32:])
	data[48] = t.CETAttributes
	binary.LittleEndian.PutUint16(data[50:], t.ConfigSVN)
	binary.LittleEndian.PutUint32(data[52:], t.MiscSelect)
	copy(data[64:], t.ConfigID[:])
	return data
}

// Report is REPORT. MAC is AES-128-CMAC over the first 384 bytes under the target's report key.
//
// KeyID names that key and is not covered by the MAC; altering it changes the key, so the MAC fails.
type Report struct {
	CPUSVN        [16]byte
	MiscSelect    uint32
	CETAttributes uint8
	ISVExtProdID  [16]byte
	Attributes    Attributes
	MRENCLAVE     EnclaveID
	MRSIGNER      [32]byte
	ConfigID      [64]byte
	ISVProdID     uint16
	ISVSVN        uint16
	ConfigSVN     uint16
	ISVFamilyID   [16]byte
	ReportData    [ReportDataSize]byte
	KeyID         [32]byte
	MAC           [16]byte
}

// DecodeReport decodes 432 bytes.
func DecodeReport(data []byte) (Report, error) {
	var r Report
	if len(data) != ReportSize {
		return r, ErrLength
	}
	if !allZero(data[21:32]) || !allZero(data[96:128]) || !allZero(data[160:192]) || !allZero(data[262:304]) {
		return r, ErrReserved
	}
	copy(r.CPUSVN[:], data)
	r.MiscSelect = binary.LittleEndian.Uint32(data[16:])
	r.CETAttributes = data[20]
	copy(r.ISVExtProdID[:], data[32:])
	r.Attributes = attributes(data[48:])
	copy(r.MRENCLAVE[:], data[64:])
	copy(r.MRSIGNER[:], data[128:])
	copy(r.ConfigID[:], data[192:])
	r.ISVProdID = binary.LittleEndian.Uint16(data[256:])
	r.ISVSVN = binary.LittleEndian.Uint16(data[258:])
	r.ConfigSVN = binary.LittleEndian.Uint16(data[260:])
	copy(r.ISVFamilyID[:], data[304:])
	copy(r.ReportData[:], data[320:])
	copy(r.KeyID[:], data[384:])
	copy(r.MAC[:], data[416:])
	return r, nil
}

// Encode encodes to 432 bytes.
func (r Report) Encode() []byte {
	data := make([]byte, ReportSize)
	copy(data, r.CPUSVN[:])
	binary.LittleEndian.PutUint32(data[16:], r.MiscSelect)
	data[20] = r.CETAttributes
	copy(data[32:], r.ISVExtProdID[:])
	r.Attributes.put(data[48:])
	copy(data[64:], r.MRENCLAVE[:])
	copy(data[128:], r.MRSIGNER[:])
	copy(data[192:], r.ConfigID[:])
	binary.LittleEndian.PutUint16(data[256:], r.ISVProdID)
	binary.LittleEndian.PutUint16(data[258:], r.ISVSVN)
	binary.LittleEndian.PutUint16(data[260:], r.ConfigSVN)
	copy(data[304:], r.ISVFamilyID[:])
	copy(data[320:], r.ReportData[:])
	copy(data[384:], r.KeyID[:])
	copy(data[416:], r.MAC[:])
	return data
}

// TargetInfo returns the TARGETINFO for a report that answers this one: its maker becomes the target.
func (r Report) TargetInfo() TargetInfo {
	return TargetInfo{r.MRENCLAVE, r.Attributes, r.CETAttributes, r.ConfigSVN, r.MiscSelect, r.ConfigID}
}

// SameEnclave tells whether both reports are of one enclave in everything that identifies it.
func (r Report) SameEnclave(other Report) bool { return r.identity() == other.identity() }

func (r Report) identity() Report {
	r.ReportData, r.KeyID, r.MAC = [64]byte{}, [32]byte{}, [16]byte{}
	return r
}

// KeyRequest is KEYREQUEST, the operand of EGETKEY.
type KeyRequest struct {
	KeyName       uint16
	KeyPolicy     uint16
	ISVSVN        uint16
	CPUSVN        [16]byte
	AttributeMask Attributes
	KeyID         [32]byte
	MiscMask      uint32
	ConfigSVN     uint16
}

// DecodeKeyRequest decodes 512 bytes.
func DecodeKeyRequest(data []byte) (KeyRequest, error) {
	var k KeyRequest
	if len(data) != KeyRequestSize {
		return k, ErrLength
	}
	if !allZero(data[6:8]) || !allZero(data[78:]) {
		return k, ErrReserved
	}
	k.KeyName = binary.LittleEndian.Uint16(data)
	k.KeyPolicy = binary.LittleEndian.Uint16(data[2:])
	if k.KeyPolicy&^policyAll != 0 {
		return k, ErrReserved
	}
	k.ISVSVN = binary.LittleEndian.Uint16(data[4:])
	copy(k.CPUSVN[:], data[8:])
	k.AttributeMask = attributes(data[24:])
	copy(k.KeyID[:], data[40:])
	k.MiscMask = binary.LittleEndian.Uint32(data[72:])
	k.ConfigSVN = binary.LittleEndian.Uint16(data[76:])
	return k, nil
}

// Encode encodes to 512 bytes.
func (k KeyRequest) Encode() []byte {
	data := make([]byte, KeyRequestSize)
	binary.LittleEndian.PutUint16(data, k.KeyName)
	binary.LittleEndian.PutUint16(data[2:], k.KeyPolicy)
	binary.LittleEndian.PutUint16(data[4:], k.ISVSVN)
	copy(data[8:], k.CPUSVN[:])
	k.AttributeMask.put(data[24:])
	copy(data[40:], k.KeyID[:])
	binary.LittleEndian.PutUint32(data[72:], k.MiscMask)
	binary.LittleEndian.PutUint16(data[76:], k.ConfigSVN)
	return data
}

// ReportKeyRequest returns the KEYREQUEST for the caller's own report key under a report's KEYID.
func ReportKeyRequest(keyID [32]byte) KeyRequest { return KeyRequest{KeyName: ReportKey, KeyID: keyID} }

// SealKeyRequest returns the KEYREQUEST for a key that only this MRENCLAVE can get back.
//
// own is a report of the caller (its CPUSVN and ISVSVN go in), keyID 32 random bytes. All attribute and MISCSELECT
// bits are in the key, so a debug twin of the same MRENCLAVE gets another one. XFRM is left out, since a kernel may
// enable a new state component between two starts.
func SealKeyRequest(own Report, keyID [32]byte) KeyRequest {
	return KeyRequest{
		KeyName:       SealKey,
		KeyPolicy:     PolicyMRENCLAVE,
		ISVSVN:        own.ISVSVN,
		CPUSVN:        own.CPUSVN,
		AttributeMask: Attributes{Flags: ^uint64(0)},
		KeyID:         keyID,
		MiscMask:      ^uint32(0),
	}
}

func allZero(data []byte) bool {
	var sum byte
	for _, b := range data {
		sum |= b
	}
	return sum == 0
}
