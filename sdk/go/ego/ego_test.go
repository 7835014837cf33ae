package ego

import (
	"errors"
	"testing"

	"handover"
	"handover/handovertest"
	"handover/sgx"
)

// double behaves as EGo is documented to, over a software CPU.
func double(enclave handovertest.Enclave) driver {
	return driver{runtime{
		localReport: func(data, target []byte) ([]byte, error) {
			var info sgx.TargetInfo // an untargeted report is for nobody
			if target != nil {
				peer, err := sgx.DecodeReport(target[len(oeHeader):])
				if err != nil {
					return nil, err
				}
				info = peer.TargetInfo()
			}
			var padded [sgx.ReportDataSize]byte
			copy(padded[:], data)
			report, err := enclave.Report(info, padded)
			return encode(report), err
		},
		verify: func(report []byte) error {
			decoded, err := sgx.DecodeReport(report[len(oeHeader):])
			if err != nil {
				return err
			}
			return enclave.Verify(decoded)
		},
		sealKey: func(keyInfo []byte) ([]byte, error) {
			request, err := sgx.DecodeKeyRequest(keyInfo)
			if err != nil {
				return nil, err
			}
			key, err := enclave.SealKey(request)
			return key[:], err
		},
	}}
}

func needCode(t *testing.T, want handover.Code, err error) {
	t.Helper()
	if handover.CodeOf(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestTwoEGoEnclavesAttestToEachOther(t *testing.T) {
	cpu := handovertest.NewCPU()
	one, two := double(cpu.Enclave("one")), double(cpu.Enclave("two"))
	target, err := two.TargetInfo()
	if err != nil || target.MRENCLAVE != cpu.Enclave("two").ID() {
		t.Fatal(target, err)
	}
	report, err := one.Report(target, [sgx.ReportDataSize]byte{7})
	if err != nil || two.Verify(report) != nil || report.MRENCLAVE != cpu.Enclave("one").ID() {
		t.Fatal(err)
	}
	needCode(t, handover.CodeReportMACBad, one.Verify(report))
	report.ISVSVN++
	needCode(t, handover.CodeReportMACBad, two.Verify(report))
}

func TestASealKeyIsThatOfTheRequest(t *testing.T) {
	cpu := handovertest.NewCPU()
	d := double(cpu.Enclave("one"))
	own, err := handover.SelfReport(d)
	if err != nil {
		t.Fatal(err)
	}
	key, err := d.SealKey(sgx.SealKeyRequest(own, [32]byte{1}))
	want, _ := cpu.Enclave("one").SealKey(sgx.SealKeyRequest(own, [32]byte{1}))
	if err != nil || key != want {
		t.Error(key, err)
	}
	_, err = d.SealKey(sgx.ReportKeyRequest([32]byte{}))
	needCode(t, handover.CodeTEEKeyRefused, err)
	d.sealKey = func([]byte) ([]byte, error) { return make([]byte, sgx.KeySize), nil }
	_, err = d.SealKey(sgx.SealKeyRequest(own, [32]byte{1}))
	needCode(t, handover.CodeSealKeyZero, err)
	d.sealKey = func([]byte) ([]byte, error) { return nil, errors.New("OE_INVALID_CPUSVN") }
	_, err = d.SealKey(sgx.SealKeyRequest(own, [32]byte{1}))
	needCode(t, handover.CodeTEEKeyRefused, err)
}

func TestWhatIsNoLocalReportIsReported(t *testing.T) {
	d := double(handovertest.NewCPU().Enclave("one"))
	for name, raw := range map[string][]byte{"nothing": nil, "short": make([]byte, 447), "remote": append([]byte{1, 0, 0, 0, 2}, make([]byte, 443)...)} {
		d.localReport = func([]byte, []byte) ([]byte, error) { return raw, nil }
		_, err := d.Report(sgx.TargetInfo{}, [sgx.ReportDataSize]byte{})
		if handover.CodeOf(err) != handover.CodeTEEProtocol {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOutsideOfAnEnclaveNothingIsOpened(t *testing.T) {
	_, err := Open()
	needCode(t, handover.CodeTEEMissing, err)
}
