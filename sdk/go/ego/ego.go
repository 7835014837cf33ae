// Package ego is the TEE of a node that is built with EGo.
//
// It is written from EGo's API (github.com/edgelesssys/ego/enclave) and not yet run on SGX hardware.
package ego

import (
	"github.com/edgelesssys/ego/enclave"

	"handover"
	"handover/sgx"
)

// oeHeader is Open Enclave's report header: version 1, type 1 (SGX local), size 432.
const oeHeader = "\x01\x00\x00\x00\x01\x00\x00\x00\xb0\x01\x00\x00\x00\x00\x00\x00"

// runtime is what the driver needs of EGo.
type runtime struct {
	localReport func(data, target []byte) ([]byte, error)
	verify      func(report []byte) error
	sealKey     func(keyInfo []byte) ([]byte, error)
}

type driver struct{ runtime }

// Open opens the TEE of an EGo enclave. It fails with TEE_MISSING outside of one, and in EGo's simulation mode.
func Open() (handover.TEE, error) {
	d := driver{runtime{
		localReport: enclave.GetLocalReport,
		verify:      func(report []byte) error { _, err := enclave.VerifyLocalReport(report); return err },
		sealKey:     enclave.GetSealKey,
	}}
	own, err := d.self()
	if err == nil {
		err = d.Verify(own) // simulation mode has no reports
	}
	if err != nil {
		return nil, &handover.Error{
			Code: handover.CodeTEEMissing, What: "this process runs in no EGo enclave", Why: err.Error(),
			Action: "Start it with ego run, on SGX hardware.", Kind: handover.Rejected,
		}
	}
	return d, nil
}

func (d driver) Kind() string { return "ego" }

// self returns a report of this enclave for itself.
func (d driver) self() (sgx.Report, error) {
	// A first report tells whom to target: EGo takes targets as reports.
	untargeted, err := d.localReport(nil, nil)
	if err != nil {
		return sgx.Report{}, interfaceError("GetLocalReport", err.Error())
	}
	return d.decode(d.localReport(nil, untargeted))
}

func (d driver) TargetInfo() (sgx.TargetInfo, error) {
	own, err := d.self()
	return own.TargetInfo(), err
}

func (d driver) Report(target sgx.TargetInfo, data [sgx.ReportDataSize]byte) (sgx.Report, error) {
	// Of a target's report Open Enclave uses what identifies it; its MAC is not looked at.
	report, err := d.decode(d.localReport(data[:], encode(sgx.Report{
		MRENCLAVE: target.MRENCLAVE, Attributes: target.Attributes, MiscSelect: target.MiscSelect,
		CETAttributes: target.CETAttributes, ConfigSVN: target.ConfigSVN, ConfigID: target.ConfigID,
	})))
	if err == nil && report.ReportData != data {
		err = interfaceError("GetLocalReport", "the report holds other REPORTDATA than was given")
	}
	return report, err
}

func (d driver) Verify(report sgx.Report) error {
	if err := d.verify(encode(report)); err != nil {
		return &handover.Error{
			Code:   handover.CodeReportMACBad,
			What:   "the report of enclave " + report.MRENCLAVE.String() + " does not verify",
			Why:    "its MAC was not made by this CPU for this enclave (" + err.Error() + ")",
			Action: "Target the report at this enclave, on this machine.", Kind: handover.Rejected,
		}
	}
	return nil
}

// SealKey passes the KEYREQUEST as Open Enclave's key info, which it is on SGX.
func (d driver) SealKey(request sgx.KeyRequest) (key [sgx.KeySize]byte, err error) {
	if request.KeyName != sgx.SealKey {
		return key, keyRefused("only seal keys are given")
	}
	raw, err := d.sealKey(request.Encode())
	if err != nil {
		return key, keyRefused(err.Error())
	}
	if len(raw) != sgx.KeySize {
		return key, interfaceError("GetSealKey", "the key has another length")
	}
	copy(key[:], raw)
	clear(raw)
	if key == [sgx.KeySize]byte{} { // what EGo gives in simulation mode
		return key, &handover.Error{
			Code: handover.CodeSealKeyZero, What: "the seal key cannot be used", Why: "it is all zeros",
			Action: "Do not seal anything; run on SGX hardware.", Kind: handover.Invariant,
		}
	}
	return key, nil
}

func encode(report sgx.Report) []byte { return append([]byte(oeHeader), report.Encode()...) }

func (d driver) decode(raw []byte, err error) (sgx.Report, error) {
	if err != nil {
		return sgx.Report{}, interfaceError("GetLocalReport", err.Error())
	}
	if len(raw) != len(oeHeader)+sgx.ReportSize || string(raw[:len(oeHeader)]) != oeHeader {
		return sgx.Report{}, interfaceError("GetLocalReport", "it gave no Open Enclave local report")
	}
	return sgx.DecodeReport(raw[len(oeHeader):])
}

func interfaceError(function, why string) error {
	return &handover.Error{
		Code: handover.CodeTEEProtocol, What: "EGo's " + function + " cannot be used", Why: why,
		Action: "Compare the version of EGo with the one in go.mod.", Kind: handover.Invariant,
	}
}

func keyRefused(why string) error {
	return &handover.Error{
		Code: handover.CodeTEEKeyRefused, What: "the TEE gave no key", Why: why,
		Action: "If microcode or the enclave was downgraded, bring it forward again.", Kind: handover.Rejected,
	}
}
