package tee

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"

	"handover"
	"handover/sgx"
)

// One datagram each way: an operation byte and its operands; a status byte and the result.
const (
	opTargetInfo, opReport, opKey = 1, 2, 3
	statusOK, statusKeyRefused    = 0, 1

	messageBytesMax = 1024
)

// simulated is the enclave's end of the socket to its software CPU (python -m attestation.simulated).
type simulated struct {
	conn net.Conn

	mu sync.Mutex
	// The report key of the last KEYID under which a MAC held: it changes per boot of the CPU.
	keyID     [32]byte
	reportKey *[sgx.KeySize]byte
}

// openSimulated takes the socket that the software CPU left open for this process.
func openSimulated(number string) (handover.TEE, error) {
	fd, err := strconv.Atoi(number)
	if err == nil {
		syscall.CloseOnExec(fd)
		file := os.NewFile(uintptr(fd), "software CPU")
		if file != nil {
			defer file.Close()
			var conn net.Conn
			if conn, err = net.FileConn(file); err == nil {
				return &simulated{conn: conn}, nil
			}
		}
	}
	return nil, missing(fmt.Sprintf("DC_TEE_FD=%q is not an open socket", number))
}

func (s *simulated) Kind() string { return "simulated" }

func (s *simulated) TargetInfo() (sgx.TargetInfo, error) {
	answer, err := s.call(opTargetInfo, sgx.TargetInfoSize)
	if err != nil {
		return sgx.TargetInfo{}, err
	}
	return sgx.DecodeTargetInfo(answer)
}

func (s *simulated) Report(target sgx.TargetInfo, data [sgx.ReportDataSize]byte) (sgx.Report, error) {
	answer, err := s.call(opReport, sgx.ReportSize, target.Encode(), data[:])
	if err != nil {
		return sgx.Report{}, err
	}
	return sgx.DecodeReport(answer)
}

func (s *simulated) Verify(report sgx.Report) error {
	s.mu.Lock()
	key, keyID := s.reportKey, s.keyID
	s.mu.Unlock()
	if key == nil || keyID != report.KeyID {
		fresh, err := s.key(sgx.ReportKeyRequest(report.KeyID))
		if err != nil {
			return err
		}
		key = &fresh
	}
	if !sgx.VerifyReportMAC(*key, report) {
		return macBad(report)
	}
	s.mu.Lock()
	s.keyID, s.reportKey = report.KeyID, key // after the check: a forger cannot push the good one out
	s.mu.Unlock()
	return nil
}

func (s *simulated) SealKey(request sgx.KeyRequest) ([sgx.KeySize]byte, error) {
	if request.KeyName != sgx.SealKey {
		return [sgx.KeySize]byte{}, keyRefused(invalidKeyName) // a report key must not pass for a seal key
	}
	return s.key(request)
}

func (s *simulated) key(request sgx.KeyRequest) (key [sgx.KeySize]byte, err error) {
	answer, err := s.call(opKey, sgx.KeySize, request.Encode())
	if err != nil {
		return key, err
	}
	copy(key[:], answer)
	return key, needKey(key)
}

// call sends one operation and returns its result of size bytes.
func (s *simulated) call(operation byte, size int, operands ...[]byte) ([]byte, error) {
	message := []byte{operation}
	for _, operand := range operands {
		message = append(message, operand...)
	}
	answer := make([]byte, messageBytesMax)
	s.mu.Lock()
	_, err := s.conn.Write(message)
	n := 0
	if err == nil {
		n, err = s.conn.Read(answer)
	}
	s.mu.Unlock()
	if err != nil || n == 0 {
		return nil, &handover.Error{
			Code: handover.CodeTEEGone, What: "the software CPU does not answer", Why: "it closed the connection",
			Action: "Start the enclave again.", Kind: handover.Invariant,
		}
	}
	answer = answer[:n]
	switch {
	case answer[0] == statusKeyRefused && n == 3:
		return nil, keyRefused(int(binary.LittleEndian.Uint16(answer[1:])))
	case answer[0] != statusOK || n != 1+size:
		return nil, &handover.Error{
			Code: handover.CodeTEEProtocol, What: "the software CPU cannot be used",
			Why:  fmt.Sprintf("it answered operation %d with status %d and %d bytes", operation, answer[0], n-1),
			Kind: handover.Invariant,
		}
	}
	return answer[1:], nil
}
