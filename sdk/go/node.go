package handover

import (
	"context"
	"fmt"

	"handover/sgx"
)

// TEE is what an enclave may ask of the CPU that it runs on. Package handover/tee has the drivers.
//
// Implementations are safe for use by several goroutines.
type TEE interface {
	// Kind names the TEE: "simulated", "gramine" or "ego". A simulated one protects nothing from its host.
	Kind() string
	// TargetInfo returns the TARGETINFO of this enclave, for a peer that wants to send it a report.
	TargetInfo() (sgx.TargetInfo, error)
	// Report makes a report for target over 64 bytes of REPORTDATA.
	Report(target sgx.TargetInfo, data [sgx.ReportDataSize]byte) (sgx.Report, error)
	// Verify returns REPORT_MAC_BAD unless report was made for this enclave on this CPU. It judges nothing else.
	Verify(report sgx.Report) error
	// SealKey returns the key that request names. It refuses every KEYNAME but SEAL.
	SealKey(request sgx.KeyRequest) ([sgx.KeySize]byte, error)
}

// SelfReport returns a report of this enclave for itself: who it is, in its own eyes.
func SelfReport(tee TEE) (sgx.Report, error) {
	target, err := tee.TargetInfo()
	if err != nil {
		return sgx.Report{}, err
	}
	return tee.Report(target, [sgx.ReportDataSize]byte{})
}

// Policy says whom a node accepts as its vault. It belongs into the node's measured image, but for IsListed.
type Policy struct {
	// Genesis is the genesis hash of the chain.
	Genesis [genesisBytes]byte
	// Network holds the network's keys; without them nobody is accepted.
	Network NetworkKeys
	// Vaults are the enclave ids that may take and give keys. Nil accepts whatever the network signed, and a network
	// signature has no role in it: name them where that is possible.
	Vaults []sgx.EnclaveID
	// ISVSVNFloor is the lowest accepted security version.
	ISVSVNFloor uint16
	// IsListed, if set, tells whether the chain's list has an enclave id. A node that follows the chain sets it, so that
	// a vault which its image names and the network has revoked gets nothing. It is asked before keys are handed over.
	// An error refuses for the moment.
	IsListed func(ctx context.Context, id sgx.EnclaveID) (bool, error)
}

// Node is this enclave's side of every handover.
type Node struct {
	TEE    TEE
	Policy Policy
	// NetworkSignatures are the network's signatures over this enclave's id, 64 bytes each; see DecodeSignatures.
	NetworkSignatures [][]byte

	primitives *primitives // for known answers; nil: the real ones
}

func (n Node) crypto() primitives {
	if n.primitives != nil {
		return *n.primitives
	}
	return realPrimitives
}

// verifyPeer judges the maker of a report: its MAC first, since only then do its fields mean anything.
func (n Node) verifyPeer(report sgx.Report, signatures [][]byte) error {
	if err := n.TEE.Verify(report); err != nil {
		return err
	}
	if err := checkAttributes(report); err != nil {
		return err
	}
	if err := n.Policy.checkIdentity(report); err != nil {
		return err
	}
	return n.Policy.Network.verify(report.MRENCLAVE, signatures)
}

const (
	flagsRequired = sgx.Init | sgx.Mode64Bit
	flagsAllowed  = sgx.Init | sgx.Mode64Bit | sgx.KSS | sgx.AEXNotify
)

func checkAttributes(report sgx.Report) error {
	flags, xfrm := report.Attributes.Flags, report.Attributes.XFRM
	switch {
	case flags&sgx.Debug != 0:
		return refusedPeer(CodePeerDebug, report, "its host can read its memory")
	case flags&sgx.Init == 0:
		return refusedPeer(CodePeerNotInit, report, "it was never initialised")
	case flags&flagsRequired != flagsRequired || flags&^flagsAllowed != 0:
		return refusedPeer(CodePeerAttributes, report,
			fmt.Sprintf("its attributes are %#x (expected %#x, at most %#x)", flags, flagsRequired, flagsAllowed))
	case xfrm&^sgx.XFRMKnown != 0 || xfrm&sgx.XFRMLegacy != sgx.XFRMLegacy:
		return refusedPeer(CodePeerXFRM, report,
			fmt.Sprintf("its XFRM is %#x (expected %#x, at most %#x)", xfrm, sgx.XFRMLegacy, sgx.XFRMKnown))
	}
	return nil
}

func (p Policy) checkIdentity(report sgx.Report) error {
	switch {
	case report.MiscSelect&^sgx.MiscEXINFO != 0:
		return refusedPeer(CodePeerMiscSelect, report, fmt.Sprintf("its MISCSELECT is %#x", report.MiscSelect))
	case report.CETAttributes != 0:
		return refusedPeer(CodePeerCET, report, fmt.Sprintf("its CET attributes are %#x", report.CETAttributes))
	case report.ConfigID != [64]byte{}:
		return refusedPeer(CodePeerConfig, report, "its host gave it a CONFIGID")
	case report.ISVSVN < p.ISVSVNFloor:
		return refusedPeer(CodePeerISVSVN, report,
			fmt.Sprintf("its security version is %d (expected at least %d)", report.ISVSVN, p.ISVSVNFloor))
	}
	if p.Vaults == nil {
		return nil
	}
	for _, id := range p.Vaults {
		if id == report.MRENCLAVE {
			return nil
		}
	}
	return refusedPeer(CodePeerNotUpgrader, report, "it is not an expected upgrader")
}

// checkListed asks whether the chain still lists a verified vault, before it is given keys.
func (p Policy) checkListed(ctx context.Context, report sgx.Report) error {
	if p.IsListed == nil {
		return nil
	}
	listed, err := p.IsListed(ctx, report.MRENCLAVE)
	if err != nil {
		refusal := refusedPeer(CodeUpgraderUnlisted, report, "whether the chain lists it is not known at the moment")
		refusal.Kind = Transient
		return refusal
	}
	if !listed {
		return refusedPeer(CodeUpgraderUnlisted, report, "the chain does not list it: it was never added, or revoked")
	}
	return nil
}

func refusedPeer(code Code, report sgx.Report, why string) *Error {
	return &Error{
		code, "enclave " + report.MRENCLAVE.String() + " is refused", why,
		"Do not give it keys; find out who started it.", Rejected,
	}
}
