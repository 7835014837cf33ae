// Package handovertest has a software CPU and a network for the tests of a node: enclaves with any identity, without a TEE.
//
// It protects nothing. Its derivations are those of Intel's simulation mode, as in the project's simulated TEE, so its
// reports and keys have the right form and verify only where they should.
package handovertest

import (
	"handover"
	"handover/internal/softcpu"
	"handover/sgx"
)

// CPU is one software CPU: enclaves of one attest to each other, and to nobody else.
type CPU struct{ cpu *softcpu.CPU }

// NewCPU returns a CPU with root keys of its own.
func NewCPU() CPU { return CPU{softcpu.NewCPU()} }

// Enclave returns the TEE of a production enclave whose MRENCLAVE is the SHA-256 of name.
func (c CPU) Enclave(name string) Enclave { return Enclave{c.cpu.Enclave(name)} }

// Enclave is a [handover.TEE]. Change its Identity before the first use to make another kind of enclave.
type Enclave struct{ *softcpu.Enclave }

// Verify implements [handover.TEE].
func (e Enclave) Verify(report sgx.Report) error {
	if err := e.Enclave.Verify(report); err != nil {
		return refused(handover.CodeReportMACBad, err)
	}
	return nil
}

// SealKey implements [handover.TEE] for the MRENCLAVE policy.
func (e Enclave) SealKey(request sgx.KeyRequest) ([sgx.KeySize]byte, error) {
	key, err := e.Enclave.SealKey(request)
	if err != nil {
		return key, refused(handover.CodeTEEKeyRefused, err)
	}
	return key, nil
}

func refused(code handover.Code, err error) error {
	return &handover.Error{Code: code, What: "the software CPU refused", Why: err.Error(), Kind: handover.Rejected}
}
