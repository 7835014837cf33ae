package tee

import (
	"os"
	"strconv"
	"sync"
	"syscall"

	"handover"
	"handover/sgx"
)

const devAttestation = "/dev/attestation"

// files is what the driver needs of /dev/attestation: each call opens, does one system call, and closes.
type files interface {
	read(name string) ([]byte, error)
	write(name string, data []byte) (int, error)
}

// keys is EGETKEY: its error code, and the key where that is 0.
type keys interface {
	egetkey(request *[sgx.KeyRequestSize]byte, key *[sgx.KeySize]byte) int
}

// gramineLock guards the state of /dev/attestation, which belongs to the process and which Gramine does not lock.
var gramineLock sync.Mutex

// gramine is Gramine on SGX: /dev/attestation for reports, EGETKEY for keys. It is written from Gramine's documentation
// and not yet run on SGX hardware.
//
// A report is made when "report" is opened, from what was last written to "target_info" and "user_report_data". A value
// must go in by one write of its full length. An all-zero TARGETINFO would come to mean this enclave itself.
type gramine struct {
	files files
	keys  keys
}

func newGramine(files files, keys keys) *gramine { return &gramine{files, keys} }

func (g *gramine) Kind() string { return "gramine" }

func (g *gramine) TargetInfo() (sgx.TargetInfo, error) {
	gramineLock.Lock()
	defer gramineLock.Unlock()
	data, err := g.read("my_target_info", sgx.TargetInfoSize)
	if err != nil {
		return sgx.TargetInfo{}, err
	}
	return sgx.DecodeTargetInfo(data)
}

func (g *gramine) Report(target sgx.TargetInfo, data [sgx.ReportDataSize]byte) (sgx.Report, error) {
	if target == (sgx.TargetInfo{}) {
		return sgx.Report{}, interfaceError("target_info", "an all-zero TARGETINFO would come to mean this enclave itself")
	}
	gramineLock.Lock()
	defer gramineLock.Unlock()
	if err := g.write("target_info", target.Encode()); err != nil {
		return sgx.Report{}, err
	}
	if err := g.write("user_report_data", data[:]); err != nil {
		return sgx.Report{}, err
	}
	raw, err := g.read("report", sgx.ReportSize)
	if err != nil {
		return sgx.Report{}, err
	}
	report, err := sgx.DecodeReport(raw)
	if err == nil && report.ReportData != data {
		err = interfaceError("report", "it holds other REPORTDATA than was written")
	}
	return report, err
}

func (g *gramine) Verify(report sgx.Report) error {
	key, err := g.key(sgx.ReportKeyRequest(report.KeyID))
	if err != nil {
		return err
	}
	if !sgx.VerifyReportMAC(key, report) {
		return macBad(report)
	}
	return nil
}

func (g *gramine) SealKey(request sgx.KeyRequest) ([sgx.KeySize]byte, error) {
	if request.KeyName != sgx.SealKey {
		return [sgx.KeySize]byte{}, keyRefused(invalidKeyName)
	}
	return g.key(request)
}

func (g *gramine) key(request sgx.KeyRequest) (key [sgx.KeySize]byte, err error) {
	if code := g.keys.egetkey((*[sgx.KeyRequestSize]byte)(request.Encode()), &key); code != 0 {
		return [sgx.KeySize]byte{}, keyRefused(code)
	}
	return key, needKey(key)
}

func (g *gramine) read(name string, size int) ([]byte, error) {
	data, err := g.files.read(name)
	if err != nil {
		return nil, interfaceError(name, err.Error())
	}
	if len(data) != size {
		return nil, interfaceError(name, "it gave "+strconv.Itoa(len(data))+" bytes")
	}
	return data, nil
}

func (g *gramine) write(name string, data []byte) error {
	taken, err := g.files.write(name, data)
	if err != nil {
		return interfaceError(name, err.Error())
	}
	if taken != len(data) {
		return interfaceError(name, "it took "+strconv.Itoa(taken)+" bytes")
	}
	return nil
}

func interfaceError(name, why string) error {
	return &handover.Error{
		Code: handover.CodeGramineInterface, What: devAttestation + "/" + name + " cannot be used", Why: why,
		Action: "Compare the version of Gramine with the one in docs/gramine.md.", Kind: handover.Invariant,
	}
}

// devFiles is the real /dev/attestation.
type devFiles struct{}

func (devFiles) read(name string) ([]byte, error) {
	fd, err := syscall.Open(devAttestation+"/"+name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	defer syscall.Close(fd)
	data := make([]byte, 4096)
	n, err := syscall.Read(fd, data)
	if err != nil {
		return nil, os.NewSyscallError("read", err)
	}
	return data[:n], nil
}

func (devFiles) write(name string, data []byte) (int, error) {
	fd, err := syscall.Open(devAttestation+"/"+name, syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("open", err)
	}
	defer syscall.Close(fd)
	n, err := syscall.Write(fd, data)
	return n, os.NewSyscallError("write", err)
}
