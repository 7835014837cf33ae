package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func openTest(t *testing.T, folder string, keys []byte) *objectStore {
	t.Helper()
	s, err := openObjects(folder, keys, "dc object v1")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func read(t *testing.T, s *objectStore, name string) ([]byte, error) {
	t.Helper()
	size, writeTo, err := s.open(name)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := writeTo(&out); err != nil {
		return nil, err
	}
	if int64(out.Len()) != size {
		t.Errorf("%s: %d bytes were promised, %d came", name, size, out.Len())
	}
	return out.Bytes(), nil
}

func TestObjectsOfEverySizeAreReadBackWhole(t *testing.T) {
	s := openTest(t, t.TempDir(), newKeys())
	for _, size := range []int{0, 1, chunkBytes - 1, chunkBytes, chunkBytes + 1, 3*chunkBytes + 7} {
		data := bytes.Repeat([]byte{0xa5}, size)
		if n, err := s.put("a", bytes.NewReader(data)); err != nil || n != int64(size) {
			t.Fatal(n, err)
		}
		if got, err := read(t, s, "a"); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: %v", size, err)
		}
		if sizes, err := s.sizes(); err != nil || len(sizes) != 1 || sizes["a"] != int64(size) {
			t.Errorf("%d bytes: %v, %v", size, sizes, err)
		}
	}
}

func TestWhatIsCutOrAlteredOrOfAnotherNameIsNotRead(t *testing.T) {
	folder := t.TempDir()
	s := openTest(t, folder, newKeys())
	if _, err := s.put("a", bytes.NewReader(make([]byte, 2*chunkBytes))); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(s.path("a"))
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"empty": {}, "head": good[:20], "cut at a frame": good[:len(good)-chunkBytes-tagBytes], "cut": good[:len(good)-1],
		"altered": append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1),
	} {
		os.WriteFile(s.path("a"), bad, 0o600)
		if _, err := read(t, s, "a"); !errors.Is(err, errUnreadable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	os.WriteFile(s.path("b"), good, 0o600)
	if _, err := read(t, s, "b"); !errors.Is(err, errUnreadable) {
		t.Error("one object's file passed for another's:", err)
	}
	if _, err := read(t, s, "c"); !errors.Is(err, errMissing) {
		t.Error(err)
	}
	if err := s.remove("b"); err != nil {
		t.Error(err)
	}
	if err := s.remove("b"); !errors.Is(err, errMissing) {
		t.Error(err)
	}
}

func TestAnUploadThatBreaksOffLeavesTheObjectAsItWas(t *testing.T) {
	folder := t.TempDir()
	keys := newKeys()
	s := openTest(t, folder, keys)
	if _, err := s.put("a", bytes.NewReader([]byte("old"))); err != nil {
		t.Fatal(err)
	}
	broken := io.MultiReader(bytes.NewReader(make([]byte, chunkBytes+5)), failing{})
	if _, err := s.put("a", broken); err == nil {
		t.Fatal("it was taken")
	}
	os.WriteFile(filepath.Join(folder, "objects", "left.1.part"), nil, 0o600) // by a process that was killed
	s = openTest(t, folder, keys)
	if got, err := read(t, s, "a"); err != nil || string(got) != "old" {
		t.Error(string(got), err)
	}
	if left, _ := filepath.Glob(filepath.Join(folder, "objects", "*.part")); len(left) != 0 {
		t.Error("parts are left:", left)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the client is gone") }

func TestTheCanarySingsUnderItsOwnKeysOnly(t *testing.T) {
	folder, keys := t.TempDir(), newKeys()
	s := openTest(t, folder, keys)
	if !s.isEmpty() || s.canarySings() {
		t.Fatal("a new folder has a canary")
	}
	if err := s.writeCanary("1.0.0"); err != nil {
		t.Fatal(err)
	}
	if !openTest(t, folder, keys).canarySings() || openTest(t, folder, newKeys()).canarySings() {
		t.Error("it sings for the wrong keys, or not at all")
	}
	other, err := openObjects(folder, keys, "another format")
	if err != nil || other.canarySings() {
		t.Error("it sings in another format", err)
	}
	if s.isEmpty() {
		t.Error("data with a canary are empty")
	}
}
