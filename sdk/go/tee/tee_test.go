package tee

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"unsafe"

	"handover"
	"handover/internal/softcpu"
	"handover/sgx"
)

func needCode(t *testing.T, want handover.Code, err error) {
	t.Helper()
	if handover.CodeOf(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// answering plays a software CPU's end of the socket and returns the enclave's driver.
func answering(t *testing.T, answer func(message []byte) []byte) *simulated {
	t.Helper()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(pair[0]), "cpu")
	cpu, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer cpu.Close()
		buffer := make([]byte, messageBytesMax)
		for {
			n, err := cpu.Read(buffer)
			if n == 0 || err != nil {
				return
			}
			reply := answer(buffer[:n])
			if reply == nil {
				return
			}
			cpu.Write(reply)
		}
	}()
	driver, err := openSimulated(strconv.Itoa(pair[1]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { driver.(*simulated).conn.Close() })
	return driver.(*simulated)
}

// enclaveOn answers as the software CPU of an enclave does.
func enclaveOn(enclave *softcpu.Enclave, keyRequests *int) func([]byte) []byte {
	return func(message []byte) []byte {
		switch operands := message[1:]; message[0] {
		case opTargetInfo:
			return append([]byte{statusOK}, enclave.Identity.TargetInfo().Encode()...)
		case opReport:
			target, _ := sgx.DecodeTargetInfo(operands[:sgx.TargetInfoSize])
			report, _ := enclave.Report(target, [64]byte(operands[sgx.TargetInfoSize:]))
			return append([]byte{statusOK}, report.Encode()...)
		default:
			*keyRequests++
			request, _ := sgx.DecodeKeyRequest(operands)
			var key [16]byte
			var err error
			if request.KeyName == sgx.ReportKey {
				key = enclave.CPU.ReportKey(enclave.Identity.TargetInfo(), request.KeyID)
			} else if key, err = enclave.SealKey(request); err != nil {
				return binary.LittleEndian.AppendUint16([]byte{statusKeyRefused}, invalidCPUSVN)
			}
			return append([]byte{statusOK}, key[:]...)
		}
	}
}

func TestTheSimulatedDriverSpeaksWithItsCPU(t *testing.T) {
	cpu, asked := softcpu.NewCPU(), 0
	peer := cpu.Enclave("peer")
	driver := answering(t, enclaveOn(cpu.Enclave("own"), &asked))
	own, err := handover.SelfReport(driver)
	if err != nil || own.MRENCLAVE != cpu.Enclave("own").ID() || driver.Kind() != "simulated" {
		t.Fatal(own, err)
	}
	report, err := driver.Report(peer.Identity.TargetInfo(), [64]byte{1})
	if err != nil || peer.Verify(report) != nil {
		t.Error("a report does not verify at its target", err)
	}
	answer, _ := peer.Report(own.TargetInfo(), [64]byte{2})
	for range 3 {
		if err := driver.Verify(answer); err != nil {
			t.Error(err)
		}
	}
	if asked != 1 {
		t.Errorf("the report key was asked for %d times", asked)
	}
	answer.ReportData[0] ^= 1
	needCode(t, handover.CodeReportMACBad, driver.Verify(answer))
	answer.KeyID[0] ^= 1
	needCode(t, handover.CodeReportMACBad, driver.Verify(answer))

	key, err := driver.SealKey(sgx.SealKeyRequest(own, [32]byte{1}))
	want, _ := cpu.Enclave("own").SealKey(sgx.SealKeyRequest(own, [32]byte{1}))
	if err != nil || key != want {
		t.Error("another seal key", err)
	}
	_, err = driver.SealKey(sgx.ReportKeyRequest([32]byte{}))
	needCode(t, handover.CodeTEEKeyRefused, err)
	own.CPUSVN[0] ^= 1
	_, err = driver.SealKey(sgx.SealKeyRequest(own, [32]byte{}))
	needCode(t, handover.CodeTEEKeyRefused, err)
}

func TestACPUThatAnswersWronglyOrIsGoneIsReported(t *testing.T) {
	for code, reply := range map[handover.Code][]byte{
		handover.CodeTEEProtocol: {statusOK, 1, 2},
		handover.CodeTEEGone:     nil,
		handover.CodeSealKeyZero: append([]byte{statusOK}, make([]byte, 16)...),
	} {
		driver := answering(t, func([]byte) []byte { return reply })
		_, err := driver.SealKey(sgx.KeyRequest{KeyName: sgx.SealKey})
		needCode(t, code, err)
	}
}

func TestOutsideOfATEENothingIsOpened(t *testing.T) {
	_, err := Open()
	needCode(t, handover.CodeTEEMissing, err)
	for _, number := range []string{"", "x", "999"} {
		t.Setenv("DC_TEE", "simulated")
		t.Setenv("DC_TEE_FD", number)
		_, err := Open()
		needCode(t, handover.CodeTEEMissing, err)
	}
}

// devDouble behaves as /dev/attestation is documented to: each write replaces the whole value, padded or cut.
type devDouble struct {
	enclave *softcpu.Enclave
	target  [sgx.TargetInfoSize]byte
	data    [sgx.ReportDataSize]byte
	stale   bool
	taken   int
	fault   error
}

func (d *devDouble) read(name string) ([]byte, error) {
	if d.fault != nil {
		return nil, d.fault
	}
	if name == "my_target_info" {
		return d.enclave.Identity.TargetInfo().Encode(), nil
	}
	target, _ := sgx.DecodeTargetInfo(d.target[:])
	if d.stale {
		d.data = [64]byte{}
	}
	report, _ := d.enclave.Report(target, d.data)
	return report.Encode(), nil
}

func (d *devDouble) write(name string, data []byte) (int, error) {
	value := d.data[:]
	if name == "target_info" {
		value = d.target[:]
	}
	clear(value)
	return copy(value, data) - d.taken, nil
}

func (d *devDouble) egetkey(request *[sgx.KeyRequestSize]byte, key *[sgx.KeySize]byte) int {
	decoded, err := sgx.DecodeKeyRequest(request[:])
	switch {
	case err != nil:
		return invalidKeyName
	case decoded.KeyName == sgx.ReportKey:
		*key = d.enclave.CPU.ReportKey(d.enclave.Identity.TargetInfo(), decoded.KeyID)
		return 0
	}
	if *key, err = d.enclave.SealKey(decoded); err != nil {
		return invalidISVSVN
	}
	return 0
}

func TestTheGramineDriverMakesAndVerifiesReportsAndGetsKeys(t *testing.T) {
	cpu := softcpu.NewCPU()
	double := &devDouble{enclave: cpu.Enclave("own")}
	driver, peer := newGramine(double, double), cpu.Enclave("peer")
	report, err := driver.Report(peer.Identity.TargetInfo(), [64]byte{1})
	if err != nil || peer.Verify(report) != nil {
		t.Error(err)
	}
	target, err := driver.TargetInfo()
	if err != nil {
		t.Fatal(err)
	}
	answer, _ := peer.Report(target, [64]byte{2})
	if err := driver.Verify(answer); err != nil {
		t.Error(err)
	}
	answer.MAC[0] ^= 1
	needCode(t, handover.CodeReportMACBad, driver.Verify(answer))
	if _, err := driver.SealKey(sgx.SealKeyRequest(double.enclave.Identity, [32]byte{})); err != nil {
		t.Error(err)
	}
	_, err = driver.SealKey(sgx.ReportKeyRequest([32]byte{}))
	needCode(t, handover.CodeTEEKeyRefused, err)
	_, err = driver.Report(sgx.TargetInfo{}, [64]byte{})
	needCode(t, handover.CodeGramineInterface, err)
}

func TestAnInterfaceThatIsNotAsDocumentedIsReported(t *testing.T) {
	cpu := softcpu.NewCPU()
	target := cpu.Enclave("peer").Identity.TargetInfo()
	for name, double := range map[string]*devDouble{
		"stale": {stale: true}, "short write": {taken: 1}, "no file": {fault: errors.New("no such file")},
	} {
		double.enclave = cpu.Enclave("own")
		_, err := newGramine(double, double).Report(target, [64]byte{1})
		if handover.CodeOf(err) != handover.CodeGramineInterface {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheOperandsOfENCLUAreAligned(t *testing.T) {
	for range 50 {
		part := alignedPart(make([]byte, 2*sgx.KeyRequestSize+sgx.KeySize))
		if uintptr(unsafe.Pointer(&part[0]))%sgx.KeyRequestSize != 0 || len(part) < sgx.KeyRequestSize+sgx.KeySize {
			t.Fatal("not aligned")
		}
	}
}

// Outside of an enclave ENCLU faults: as an illegal instruction, or as a protection fault on a CPU with SGX.
func TestENCLUIsExecuted(t *testing.T) {
	if os.Getenv("EXECUTE_ENCLU") != "" {
		var key [sgx.KeySize]byte
		enclu{}.egetkey(&[sgx.KeyRequestSize]byte{}, &key)
		return
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("ENCLU is an instruction of amd64")
	}
	child := exec.Command(os.Args[0], "-test.run=^TestENCLUIsExecuted$")
	child.Env = append(os.Environ(), "EXECUTE_ENCLU=1")
	output, err := child.CombinedOutput()
	faulted := bytes.Contains(output, []byte("SIGILL")) || bytes.Contains(output, []byte("SIGSEGV"))
	if err == nil || !faulted || !bytes.Contains(output, []byte("tee.egetkey(")) {
		t.Errorf("%v\n%s", err, output)
	}
}
