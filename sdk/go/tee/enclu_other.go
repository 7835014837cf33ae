//go:build !amd64

package tee

import "handover/sgx"

// enclu is a CPU without SGX: it refuses every key.
type enclu struct{}

func (enclu) egetkey(*[sgx.KeyRequestSize]byte, *[sgx.KeySize]byte) int { return invalidKeyName }
