// Package tee opens the TEE that a node runs in.
//
// It has drivers for the project's simulated TEE, which protects nothing and is for development, and for Gramine on SGX.
// EGo's driver is handover/ego, a module of its own, since it needs EGo's package.
package tee

import (
	"fmt"
	"os"

	"handover"
	"handover/sgx"
)

// Open opens the TEE that this process runs in. It fails with TEE_MISSING outside of one.
//
// The simulated TEE is used only if its CPU said so in the environment, which it clears of everything else. Whether that
// is good enough the caller decides by Kind; [handover.OpenStore] refuses it unless it is allowed.
func Open() (handover.TEE, error) {
	if os.Getenv("DC_TEE") == "simulated" {
		return openSimulated(os.Getenv("DC_TEE_FD"))
	}
	if _, err := os.Stat(devAttestation + "/report"); err == nil {
		return newGramine(devFiles{}, enclu{}), nil
	}
	return nil, missing("there is neither DC_TEE=simulated nor " + devAttestation)
}

func missing(why string) error {
	return &handover.Error{
		Code: handover.CodeTEEMissing, What: "this process runs in no TEE", Why: why,
		Action: "Start it in Gramine, or with python -m attestation.simulated run for development.",
		Kind:   handover.Rejected,
	}
}

const (
	invalidCPUSVN  = 32
	invalidISVSVN  = 64
	invalidKeyName = 256
)

// keyRefused says that EGETKEY ended with an error code (SDM 3D, EGETKEY).
func keyRefused(code int) error {
	reason := map[int]string{
		2:              "INVALID_ATTRIBUTE",
		invalidCPUSVN:  "INVALID_CPUSVN: the key is for a newer CPUSVN than this CPU runs at",
		invalidISVSVN:  "INVALID_ISVSVN: the key is for a newer ISVSVN than this enclave has",
		invalidKeyName: "INVALID_KEYNAME",
	}[code]
	return &handover.Error{
		Code: handover.CodeTEEKeyRefused, What: "the TEE gave no key",
		Why:    fmt.Sprintf("EGETKEY ended with %d %s", code, reason),
		Action: "If microcode or the enclave was downgraded, bring it forward again.", Kind: handover.Rejected,
	}
}

// needKey refuses an all-zero key: what an interface that failed silently would give.
func needKey(key [sgx.KeySize]byte) error {
	if key != [sgx.KeySize]byte{} {
		return nil
	}
	return &handover.Error{
		Code: handover.CodeSealKeyZero, What: "the seal key cannot be used", Why: "it is all zeros",
		Action: "Do not seal anything; look at the TEE's installation.", Kind: handover.Invariant,
	}
}

func macBad(report sgx.Report) error {
	return &handover.Error{
		Code:   handover.CodeReportMACBad,
		What:   "the report of enclave " + report.MRENCLAVE.String() + " does not verify",
		Why:    "its MAC was not made by this CPU for this enclave",
		Action: "Target the report at this enclave, on this machine.", Kind: handover.Rejected,
	}
}
