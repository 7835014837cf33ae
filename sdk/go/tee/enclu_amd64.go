package tee

import (
	"runtime"
	"unsafe"

	"handover/sgx"
)

// egetkey executes the instruction; outside of an enclave the process ends with a fault. Its operands escape to the heap
// by this declaration, where they do not move and stay aligned.
func egetkey(request *[sgx.KeyRequestSize]byte, key *[sgx.KeySize]byte) uint32

// enclu is the CPU itself.
type enclu struct{}

func (enclu) egetkey(request *[sgx.KeyRequestSize]byte, key *[sgx.KeySize]byte) int {
	// Operands that are not aligned end in a general protection fault.
	buffer := make([]byte, 2*sgx.KeyRequestSize+sgx.KeySize)
	aligned := alignedPart(buffer)
	alignedRequest := (*[sgx.KeyRequestSize]byte)(aligned)
	alignedKey := (*[sgx.KeySize]byte)(aligned[sgx.KeyRequestSize:])
	*alignedRequest = *request
	code := egetkey(alignedRequest, alignedKey)
	if code == 0 {
		*key = *alignedKey
	}
	clear(alignedKey[:])
	runtime.KeepAlive(buffer)
	return int(code)
}

// alignedPart returns the part of a buffer that begins at a multiple of the KEYREQUEST's size.
func alignedPart(buffer []byte) []byte {
	past := int(uintptr(unsafe.Pointer(&buffer[0])) % sgx.KeyRequestSize)
	return buffer[(sgx.KeyRequestSize-past)%sgx.KeyRequestSize:]
}
