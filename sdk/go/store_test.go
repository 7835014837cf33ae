package handover

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func openStore(t *testing.T, folder string, node Node) *Store {
	t.Helper()
	store, err := OpenStore(folder, node.TEE, true)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// install makes the keys of a first version.
func install(t *testing.T, store *Store) {
	t.Helper()
	if err := store.Create(newKeys(t)); err != nil {
		t.Fatal(err)
	}
	if canary, err := store.Adopt(newKeys(t)); canary || err != nil {
		t.Fatal("new data had a canary", err)
	}
}

func sealedFiles(t *testing.T, folder string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, sealedFolder, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestAFirstInstallMakesKeysOnceAndALaterStartLoadsThem(t *testing.T) {
	folder := t.TempDir()
	store := openStore(t, folder, newNode(t, "1.0.0"))
	if keys, err := store.Load(); keys != nil || err != nil {
		t.Fatal("an empty folder has keys", err)
	}
	install(t, store)
	needCode(t, CodeKeySetExists, store.Create(newKeys(t)))
	again := openStore(t, folder, newNode(t, "1.0.0"))
	keys, err := again.Load()
	if err != nil || !keys.Equal(newKeys(t)) {
		t.Fatal(keys, err)
	}
	if canary, err := again.Adopt(keys); !canary || err != nil {
		t.Error("the canary does not open", err)
	}
	for _, path := range append(sealedFiles(t, folder), filepath.Join(folder, markerFile), filepath.Join(folder, canaryFile)) {
		data, err := os.ReadFile(path)
		if err != nil || bytes.Contains(data, theKeys) {
			t.Errorf("%s holds the keys in clear, %v", path, err)
		}
		if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
	}
}

func TestAnotherVersionOpensNothingAndIsGivenTheKeysByHandover(t *testing.T) {
	folder := t.TempDir()
	install(t, openStore(t, folder, newNode(t, "1.0.0")))
	next := openStore(t, folder, newNode(t, "1.1.0"))
	if keys, err := next.Load(); keys != nil || err != nil {
		t.Fatal("another version opened the keys", err)
	}
	needCode(t, CodeKeySetExists, next.Create(newKeys(t)))
	others, err := NewKeySet([]byte("keys of other data"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = next.Seal(t.Context(), others)
	needCode(t, CodeCanaryUnreadable, err)
	if canary, err := next.Seal(t.Context(), newKeys(t)); !canary || err != nil {
		t.Error(canary, err)
	}
	if keys, err := openStore(t, folder, newNode(t, "1.0.0")).Load(); keys == nil || err != nil {
		t.Error("the earlier version has lost its copy", err)
	}
}

func TestADamagedCopyIsKeptAndTheOtherGenerationIsUsed(t *testing.T) {
	folder := t.TempDir()
	store := openStore(t, folder, newNode(t, "1.0.0"))
	for range 2 {
		if err := store.Put(newKeys(t)); err != nil {
			t.Fatal(err)
		}
	}
	files := sealedFiles(t, folder)
	if len(files) != 2 {
		t.Fatal(files)
	}
	for _, damaged := range files {
		good, _ := os.ReadFile(damaged)
		for _, at := range []int{0, 12, 25, 540, 600, 630, 640, 650, len(good) - 1} {
			bad := bytes.Clone(good)
			bad[at] ^= 1
			if err := os.WriteFile(damaged, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if keys, err := store.Load(); err != nil || !keys.Equal(newKeys(t)) {
				t.Errorf("with byte %d of %s altered: %v", at, filepath.Base(damaged), err)
			}
		}
		os.WriteFile(damaged, good, 0o600)
	}
	os.WriteFile(files[0], []byte("damaged"), 0o600)
	for range 2 {
		if err := store.Put(newKeys(t)); err != nil {
			t.Fatal(err)
		}
	}
	if data, err := os.ReadFile(files[0] + ".kept-1"); err != nil || string(data) != "damaged" {
		t.Error("what did not open was not kept", err)
	}
}

func TestTheLastCopyThatDoesNotOpenIsReportedAndNotDeleted(t *testing.T) {
	folder := t.TempDir()
	store := openStore(t, folder, newNode(t, "1.0.0"))
	install(t, store)
	file := sealedFiles(t, folder)[0]
	data, _ := os.ReadFile(file)
	data[len(data)-1] ^= 1
	os.WriteFile(file, data, 0o600)
	_, err := store.Load()
	needCode(t, CodeStoreUnsealFailed, err)
	needCode(t, CodeKeySetExists, store.Create(newKeys(t)))
	if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, data) {
		t.Error("it was changed", err)
	}
}

func TestACopyUnderAnotherNameIsRefused(t *testing.T) {
	folder := t.TempDir()
	store := openStore(t, folder, newNode(t, "1.0.0"))
	if err := store.Put(newKeys(t)); err != nil {
		t.Fatal(err)
	}
	file := sealedFiles(t, folder)[0]
	id := newKeys(t).ID()
	if err := os.Rename(file, strings.Replace(file, id, strings.Repeat("0", 64), 1)); err != nil {
		t.Fatal(err)
	}
	store.Mark(&KeySet{id: strings.Repeat("0", 64)})
	_, err := store.Load()
	needCode(t, CodeStoreFormatInvalid, err)
}

func TestADamagedMarkerStopsEverything(t *testing.T) {
	folder := t.TempDir()
	store := openStore(t, folder, newNode(t, "1.0.0"))
	for _, text := range []string{"", "{}", "[]", `{"key_set_id": "x"}`} {
		os.WriteFile(filepath.Join(folder, markerFile), []byte(text), 0o600)
		_, err := store.Load()
		needCode(t, CodeMarkerUnreadable, err)
		needCode(t, CodeMarkerUnreadable, store.Create(newKeys(t)))
		needCode(t, CodeMarkerUnreadable, store.Mark(newKeys(t)))
	}
}

func TestASimulatedTEESealsOnlyWhereTheImageAllowsIt(t *testing.T) {
	store, err := OpenStore(t.TempDir(), newNode(t, "1.0.0").TEE, false)
	if err != nil {
		t.Fatal(err)
	}
	needCode(t, CodeStoreSealKeyUnsafe, store.Put(newKeys(t)))
}

func TestADiskThatCannotBeWrittenIsReportedAndNothingIsLost(t *testing.T) {
	folder := t.TempDir()
	store := openStore(t, folder, newNode(t, "1.0.0"))
	if err := store.Put(newKeys(t)); err != nil {
		t.Fatal(err)
	}
	file := sealedFiles(t, folder)[0]
	aside := filepath.Join(folder, sealedFolder, "."+strings.Replace(filepath.Base(file), ".a.", ".b.", 1)+".aside")
	if err := os.Mkdir(aside, 0o700); err != nil { // what is to be written aside cannot be
		t.Fatal(err)
	}
	err := store.Put(newKeys(t))
	needCode(t, CodeStoreWriteFailed, err)
	if !IsTransient(err) {
		t.Error("a full disk is not for good")
	}
	if keys, err := store.Load(); err != nil || !keys.Equal(newKeys(t)) {
		t.Error(keys, err)
	}
}
