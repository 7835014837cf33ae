// Package softcpu plays the CPU of an enclave, for tests. Its derivations are those of Intel's simulation mode.
package softcpu

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"handover/sgx"
)

// CPUSVN is the security version that every CPU here runs at.
var CPUSVN = [16]byte{0x48, 0x20, 0xf3, 0x37, 0x6a, 0xe6, 0xb2, 0xf2, 0x03, 0x4d, 0x3b, 0x7a, 0x4b, 0x48, 0xa7, 0x78}

var (
	// ErrMAC is returned for a report that was not made for the enclave on its CPU.
	ErrMAC = errors.New("softcpu: the MAC does not verify")
	// ErrKey is returned for a key request that is not for this enclave.
	ErrKey = errors.New("softcpu: no such key")
)

// CPU is one software CPU: enclaves of one attest to each other, and to nobody else.
type CPU struct {
	SealRoot, ReportRoot, OwnerEpoch [16]byte
	ReportKeyID                      [32]byte
}

// NewCPU returns a CPU with root keys of its own.
func NewCPU() *CPU {
	c := &CPU{}
	for _, root := range [][]byte{c.SealRoot[:], c.ReportRoot[:], c.OwnerEpoch[:], c.ReportKeyID[:]} {
		rand.Read(root)
	}
	return c
}

// Enclave returns the TEE of a production enclave whose MRENCLAVE is the SHA-256 of name.
func (c *CPU) Enclave(name string) *Enclave {
	return &Enclave{CPU: c, Identity: sgx.Report{
		CPUSVN: CPUSVN, MRENCLAVE: sha256.Sum256([]byte(name)),
		Attributes: sgx.Attributes{Flags: sgx.Init | sgx.Mode64Bit, XFRM: sgx.XFRMLegacy},
	}}
}

// Enclave is a handover.TEE. Change Identity before its first use to make another kind of enclave.
type Enclave struct {
	CPU      *CPU
	Identity sgx.Report
}

// ID returns the enclave's MRENCLAVE.
func (e *Enclave) ID() sgx.EnclaveID { return e.Identity.MRENCLAVE }

// Kind returns "simulated".
func (e *Enclave) Kind() string { return "simulated" }

// TargetInfo implements handover.TEE.
func (e *Enclave) TargetInfo() (sgx.TargetInfo, error) { return e.Identity.TargetInfo(), nil }

// Report implements handover.TEE.
func (e *Enclave) Report(target sgx.TargetInfo, data [sgx.ReportDataSize]byte) (sgx.Report, error) {
	report := e.Identity
	report.ReportData, report.KeyID = data, e.CPU.ReportKeyID
	report.MAC = sgx.ReportMAC(e.CPU.ReportKey(target, report.KeyID), report)
	return report, nil
}

// Verify implements handover.TEE.
func (e *Enclave) Verify(report sgx.Report) error {
	if !sgx.VerifyReportMAC(e.CPU.ReportKey(e.Identity.TargetInfo(), report.KeyID), report) {
		return ErrMAC
	}
	return nil
}

// SealKey implements handover.TEE for the MRENCLAVE policy.
func (e *Enclave) SealKey(request sgx.KeyRequest) ([sgx.KeySize]byte, error) {
	if request.KeyName != sgx.SealKey || request.KeyPolicy != sgx.PolicyMRENCLAVE || request.CPUSVN != CPUSVN {
		return [sgx.KeySize]byte{}, ErrKey
	}
	return sgx.CMAC(e.CPU.SealRoot, append(request.Encode(), e.Identity.MRENCLAVE[:]...)), nil
}

// ReportKey derives the report key of a target: KEYNAME, 6 zeros, ATTRIBUTES, MISCSELECT, OWNEREPOCH, MRENCLAVE, CPUSVN,
// CONFIGSVN, CONFIGID, KEYID, 2 zeros.
func (c *CPU) ReportKey(target sgx.TargetInfo, keyID [32]byte) [sgx.KeySize]byte {
	data := make([]byte, 8, 192)
	data[0] = byte(sgx.ReportKey)
	data = binary.LittleEndian.AppendUint64(data, target.Attributes.Flags)
	data = binary.LittleEndian.AppendUint64(data, target.Attributes.XFRM)
	data = binary.LittleEndian.AppendUint32(data, target.MiscSelect)
	data = append(data, c.OwnerEpoch[:]...)
	data = append(data, target.MRENCLAVE[:]...)
	data = append(data, CPUSVN[:]...)
	data = binary.LittleEndian.AppendUint16(data, target.ConfigSVN)
	data = append(data, target.ConfigID[:]...)
	data = append(data, keyID[:]...)
	return sgx.CMAC(c.ReportRoot, append(data, 0, 0))
}
