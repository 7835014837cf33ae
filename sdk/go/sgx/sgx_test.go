package sgx

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
)

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	data, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The examples of NIST SP 800-38B for AES-128.
func TestCMACKnownAnswers(t *testing.T) {
	key := [16]byte(unhex(t, "2b7e151628aed2a6abf7158809cf4f3c"))
	message := unhex(t, "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710")
	for size, want := range map[int]string{
		0:  "bb1d6929e95937287fa37d129b756746",
		16: "070a16b46b4d4144f79bdd9dd04a287c",
		40: "dfa66747de9ae63030ca32611497c827",
		64: "51f0bebf7e3b9d92fc49741779363cfe",
	} {
		if mac := CMAC(key, message[:size]); hex.EncodeToString(mac[:]) != want {
			t.Errorf("%d bytes: got %x, want %s", size, mac, want)
		}
	}
}

func pattern(size int) []byte {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i*7 + 1)
	}
	return data
}

func zeroed(data []byte, ranges ...[2]int) []byte {
	for _, r := range ranges {
		clear(data[r[0]:r[1]])
	}
	return data
}

func TestStructuresEncodeBackToTheSameBytesAndRefuseReservedOnes(t *testing.T) {
	for name, c := range map[string]struct {
		data     []byte
		reserved []int
		again    func([]byte) ([]byte, error)
	}{
		"TARGETINFO": {
			zeroed(pattern(TargetInfoSize), [2]int{49, 50}, [2]int{56, 64}, [2]int{128, 512}),
			[]int{49, 56, 63, 128, 511},
			func(b []byte) ([]byte, error) { v, err := DecodeTargetInfo(b); return v.Encode(), err },
		},
		"REPORT": {
			zeroed(pattern(ReportSize), [2]int{21, 32}, [2]int{96, 128}, [2]int{160, 192}, [2]int{262, 304}),
			[]int{21, 31, 96, 127, 160, 191, 262, 303},
			func(b []byte) ([]byte, error) { v, err := DecodeReport(b); return v.Encode(), err },
		},
		"KEYREQUEST": {
			zeroed(pattern(KeyRequestSize), [2]int{2, 4}, [2]int{6, 8}, [2]int{78, 512}),
			[]int{3, 6, 7, 78, 511},
			func(b []byte) ([]byte, error) { v, err := DecodeKeyRequest(b); return v.Encode(), err },
		},
	} {
		again, err := c.again(c.data)
		if err != nil || !bytes.Equal(again, c.data) {
			t.Errorf("%s does not encode back: %v", name, err)
		}
		if _, err := c.again(c.data[:len(c.data)-1]); !errors.Is(err, ErrLength) {
			t.Errorf("%s: a short one gave %v", name, err)
		}
		for _, at := range c.reserved {
			bad := bytes.Clone(c.data)
			bad[at] = 0x80
			if _, err := c.again(bad); !errors.Is(err, ErrReserved) {
				t.Errorf("%s with reserved byte %d gave %v", name, at, err)
			}
		}
	}
}

func TestAnEnclaveIDHasOneSpelling(t *testing.T) {
	text := hex.EncodeToString(pattern(32))
	id, err := ParseEnclaveID(text)
	if err != nil || id.String() != text {
		t.Fatalf("got %v, %v", id, err)
	}
	for _, bad := range []string{"", text[1:], text + "0", "0x" + text[2:], "A" + text[1:], "g" + text[1:]} {
		if _, err := ParseEnclaveID(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func FuzzDecodeReport(f *testing.F) {
	f.Add(make([]byte, ReportSize))
	f.Fuzz(func(t *testing.T, data []byte) {
		if report, err := DecodeReport(data); err == nil && !bytes.Equal(report.Encode(), data) {
			t.Error("a decoded report encodes to other bytes")
		}
	})
}

func FuzzDecodeTargetInfo(f *testing.F) {
	f.Add(make([]byte, TargetInfoSize))
	f.Fuzz(func(t *testing.T, data []byte) {
		if target, err := DecodeTargetInfo(data); err == nil && !bytes.Equal(target.Encode(), data) {
			t.Error("a decoded TARGETINFO encodes to other bytes")
		}
	})
}

func FuzzDecodeKeyRequest(f *testing.F) {
	f.Add(make([]byte, KeyRequestSize))
	f.Fuzz(func(t *testing.T, data []byte) {
		if request, err := DecodeKeyRequest(data); err == nil && !bytes.Equal(request.Encode(), data) {
			t.Error("a decoded KEYREQUEST encodes to other bytes")
		}
	})
}
