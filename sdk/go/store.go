package handover

import (
	"context"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"handover/sgx"
)

const (
	// CodeKeySetExists refuses to make keys beside data that belong to a key set already.
	CodeKeySetExists Code = "KEY_SET_EXISTS"
	// CodeMarkerUnreadable means that the marker of the key set is damaged.
	CodeMarkerUnreadable Code = "MARKER_UNREADABLE"
	// CodeCanaryUnreadable means that a canary record exists and does not open: these are the keys of other data.
	CodeCanaryUnreadable Code = "CANARY_UNREADABLE"

	markerFile   = "keyset.json"
	canaryFile   = "canary.sealed"
	sealedFolder = "sealed"
	canaryText   = "the canary opens only under the keys of these data"
	canaryInfo   = "dcupgrade canary v1\x00"
)

var generations = []string{"a", "b"}

// Store keeps a node's key set in its data folder, sealed to the enclave, by the rules that every node owes its data:
//
//   - a key set is sealed beside others, never over them, in two generations; a write is synced, renamed, synced again,
//     and read back from disk and unsealed before it counts;
//   - what cannot be unsealed is kept under another name, never deleted or overwritten;
//   - a marker names the key set that the data belong to, and no keys are ever made beside one;
//   - a canary record tells keys that open these data from keys that do not.
//
// One process at a time may use a data folder; guard it with a lock.
type Store struct {
	folder         string
	tee            TEE
	allowSimulated bool
	own            sgx.Report

	mu sync.Mutex
}

// OpenStore opens the store in a data folder and makes the folder if there is none.
//
// allowSimulated lets it seal in a simulated TEE, whose host can read the seal key. It is a setting of the measured
// image, never of the host.
func OpenStore(folder string, tee TEE, allowSimulated bool) (*Store, error) {
	own, err := SelfReport(tee)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(folder, sealedFolder), 0o700); err != nil {
		return nil, writeFailed("the store could not be opened", err)
	}
	return &Store{folder: folder, tee: tee, allowSimulated: allowSimulated, own: own}, nil
}

// Marker returns the id of the key set that the data belong to, or "" as long as no version ever had keys.
func (s *Store) Marker() (string, error) {
	data, err := os.ReadFile(filepath.Join(s.folder, markerFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	var marker struct {
		KeySetID string `json:"key_set_id"`
	}
	if err == nil {
		if err = json.Unmarshal(data, &marker); err == nil {
			_, err = sgx.ParseEnclaveID(marker.KeySetID) // the same spelling
		}
	}
	if err != nil {
		return "", &Error{
			CodeMarkerUnreadable, "the key set of these data is not known", markerFile + " is damaged",
			"Restore it from a backup.", Invariant,
		}
	}
	return marker.KeySetID, nil
}

// Load returns the key set of these data that this very enclave sealed, or nil where there is none.
func (s *Store) Load() (*KeySet, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	marker, err := s.Marker()
	if err != nil {
		return nil, err
	}
	if marker != "" {
		keys, err := s.newest(marker)
		if CodeOf(err) == CodeStoreMissing {
			return nil, nil
		}
		return keys, err
	}
	ids, err := s.ids()
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	if len(ids) > 1 {
		return nil, rejected(CodeKeySetMismatch, "no key set was loaded",
			"there are several sealed key sets and no marker to choose by")
	}
	return s.newest(ids[0])
}

// Create seals the first key set of new data; adopt it next. It refuses with KEY_SET_EXISTS beside a marker, a canary or
// a sealed file of whomever: keys that are made anew read nothing of what is there.
func (s *Store) Create(keys *KeySet) error {
	marker, err := s.Marker()
	if err != nil {
		return err
	}
	files, err := os.ReadDir(filepath.Join(s.folder, sealedFolder))
	if err != nil {
		return writeFailed("no key set was made", err)
	}
	_, err = os.Stat(filepath.Join(s.folder, canaryFile))
	if marker != "" || len(files) > 0 || !errors.Is(err, fs.ErrNotExist) {
		return rejected(CodeKeySetExists, "no key set was made", "these data belong to a key set already")
	}
	return s.Put(keys)
}

// Seal is the [SealFunc] of a node that keeps its keys here: it seals the keys, reads them back, and adopts them.
func (s *Store) Seal(_ context.Context, keys *KeySet) (canary bool, err error) {
	if err := s.Put(keys); err != nil {
		return false, err
	}
	return s.Adopt(keys)
}

// Adopt takes keys into use for these data and tells whether they opened a canary record of older data. Call it at each
// start, before the data are touched.
//
// It fails with CANARY_UNREADABLE where the record does not open. New data get a canary and the marker.
func (s *Store) Adopt(keys *KeySet) (canary bool, err error) {
	marker, err := s.Marker()
	if err != nil {
		return false, err
	}
	if canary, err = s.openCanary(keys); err != nil {
		return false, err
	}
	if !canary && marker == "" {
		if err := s.writeCanary(keys); err != nil {
			return false, err
		}
	}
	return canary, s.Mark(keys)
}

// Mark writes down that the data belong to a key set. It refuses where they belong to another one.
func (s *Store) Mark(keys *KeySet) error {
	marker, err := s.Marker()
	if err != nil || marker == keys.ID() {
		return err
	}
	if marker != "" {
		return rejected(CodeKeySetMismatch, "the marker was not written", "the data belong to key set "+marker)
	}
	data, _ := json.Marshal(map[string]string{"key_set_id": keys.ID()})
	return s.write(markerFile, data)
}

// writeCanary writes the record that tells keys of these data from others.
func (s *Store) writeCanary(keys *KeySet) error {
	salt := randomBytes(32)
	aead, err := newAEAD(keys.Bytes(), salt, canaryInfo)
	if err != nil {
		return err
	}
	// The key is used once: its salt is random.
	return s.write(canaryFile, aead.Seal(salt, make([]byte, aead.NonceSize()), []byte(canaryText), salt))
}

// openCanary tells whether there is a canary record, and fails with CANARY_UNREADABLE where it does not open.
func (s *Store) openCanary(keys *KeySet) (bool, error) {
	data, err := os.ReadFile(filepath.Join(s.folder, canaryFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil && len(data) > 32 {
		aead, aeadErr := newAEAD(keys.Bytes(), data[:32], canaryInfo)
		if aeadErr != nil {
			return false, aeadErr
		}
		if _, err := aead.Open(nil, make([]byte, aead.NonceSize()), data[32:], data[:32]); err == nil {
			return true, nil
		}
	}
	return false, &Error{
		CodeCanaryUnreadable, "the data were not opened", "the canary record does not open under these keys",
		"Nothing was changed. Look for the vault or node that holds the keys of these data.", Invariant,
	}
}

// Put seals a key set as its next generation. It returns after the file was read back from disk and unsealed.
func (s *Store) Put(keys *KeySet) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var epoch uint64
	target := generations[0]
	for i, generation := range generations {
		if plaintext, header, err := s.read(s.file(keys.ID(), generation)); err == nil {
			clear(plaintext)
			if header.epoch > epoch {
				epoch, target = header.epoch, generations[1-i]
			}
		}
	}
	header := sealedHeader{
		epoch: epoch + 1, request: sgx.SealKeyRequest(s.own, [32]byte(randomBytes(32))), sealer: s.own.MRENCLAVE,
		source: s.own.MRENCLAVE, nonce: [12]byte(randomBytes(12)),
	}
	hex.Decode(header.name[:], []byte(keys.ID()))
	key, err := s.sealKey(header.request)
	if err != nil {
		return err
	}
	data, err := header.seal(key, keys.Bytes())
	if err != nil {
		return err
	}
	file := s.file(keys.ID(), target)
	if err := s.keepUnreadable(file); err != nil {
		return err
	}
	if err := s.write(file, data); err != nil {
		return err
	}
	return s.readBack(file, header.epoch, keys)
}

func (s *Store) readBack(file string, epoch uint64, keys *KeySet) error {
	plaintext, header, err := s.read(file)
	defer clear(plaintext)
	if err != nil || header.epoch != epoch || subtle.ConstantTimeCompare(plaintext, keys.Bytes()) != 1 {
		return &Error{
			CodeStoreReadBackFailed, file + " was written but cannot be trusted",
			"what was read back from disk does not open to what was sealed",
			"Look at the disk. The earlier copy is untouched.", Invariant,
		}
	}
	return nil
}

// keepUnreadable moves a file that does not open out of the way: it may be all that is left of something.
func (s *Store) keepUnreadable(file string) error {
	plaintext, _, err := s.read(file)
	clear(plaintext)
	if err == nil || CodeOf(err) == CodeStoreMissing {
		return nil
	}
	for number := 1; ; number++ {
		kept := fmt.Sprintf("%s.kept-%d", file, number)
		if _, err := os.Lstat(filepath.Join(s.folder, kept)); errors.Is(err, fs.ErrNotExist) {
			if err := os.Rename(filepath.Join(s.folder, file), filepath.Join(s.folder, kept)); err != nil {
				return writeFailed(file+" could not be kept", err)
			}
			return nil
		}
	}
}

// newest returns the newest copy that opens. The caller holds the lock.
func (s *Store) newest(id string) (*KeySet, error) {
	var best []byte
	var bestHeader sealedHeader
	var problem error
	for _, generation := range generations {
		plaintext, header, err := s.read(s.file(id, generation))
		switch {
		case err == nil && (best == nil || header.epoch > bestHeader.epoch):
			clear(best)
			best, bestHeader = plaintext, header
		case err == nil:
			clear(plaintext)
		case problem == nil || CodeOf(problem) == CodeStoreMissing:
			problem = err
		}
	}
	if best == nil {
		return nil, problem
	}
	defer clear(best)
	return NewKeySet(best)
}

// ids returns the key sets that this enclave sealed and can open. The caller holds the lock.
func (s *Store) ids() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.folder, sealedFolder))
	if err != nil {
		return nil, readFailed(sealedFolder, err)
	}
	var ids []string
	for _, entry := range entries {
		name, ok := strings.CutPrefix(entry.Name(), s.own.MRENCLAVE.String()+".keys-")
		if !ok || len(name) < 64 || slices.Contains(ids, name[:64]) {
			continue
		}
		if keys, err := s.newest(name[:64]); err == nil {
			keys.Wipe()
			ids = append(ids, name[:64])
		}
	}
	return ids, nil
}

// file names a sealed file after its sealer: versions of an enclave share a folder, none is in another's way.
func (s *Store) file(id, generation string) string {
	return filepath.Join(sealedFolder, s.own.MRENCLAVE.String()+".keys-"+id+"."+generation+".sealed")
}

func (s *Store) read(file string) ([]byte, sealedHeader, error) {
	handle, err := os.OpenFile(filepath.Join(s.folder, file), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, sealedHeader{}, rejected(CodeStoreMissing, file+" cannot be read", "it is not there")
	}
	if err != nil {
		return nil, sealedHeader{}, readFailed(file, err)
	}
	defer handle.Close()
	data, err := io.ReadAll(io.LimitReader(handle, sealedBytesMax+1))
	if err != nil {
		return nil, sealedHeader{}, readFailed(file, err)
	}
	header, err := decodeSealedHeader(data)
	if err != nil {
		return nil, header, err
	}
	if header.sealer != s.own.MRENCLAVE {
		return nil, header, &Error{
			CodeStoreOtherEnclave, file + " cannot be opened",
			"it was sealed by " + header.sealer.String() + ", this is " + s.own.MRENCLAVE.String(),
			"Run the version that sealed it; versions stand side by side.", Invariant,
		}
	}
	if !strings.Contains(file, ".keys-"+hex.EncodeToString(header.name[:])+".") {
		return nil, header, sealedInvalid("its name is not the one in its header: it was copied or renamed")
	}
	key, err := s.sealKey(header.request)
	if err != nil {
		return nil, header, err
	}
	plaintext, err := header.open(key, data)
	return plaintext, header, err
}

func (s *Store) sealKey(request sgx.KeyRequest) ([sgx.KeySize]byte, error) {
	key, err := s.tee.SealKey(request)
	if err != nil {
		return key, err
	}
	zero := key == [sgx.KeySize]byte{}
	if zero || s.tee.Kind() == "simulated" && !s.allowSimulated {
		why := "the TEE is simulated: its host can read the key"
		if zero {
			why = "the seal key is all zero"
		}
		return key, &Error{
			CodeStoreSealKeyUnsafe, "sealing was refused", why,
			"Run in a real TEE, or measure into the image that a simulated one is allowed.", Invariant,
		}
	}
	return key, nil
}

// write replaces a file of the data folder so that a crash at any instant leaves the old one or the new one whole.
func (s *Store) write(file string, data []byte) error {
	path := filepath.Join(s.folder, file)
	aside := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".aside")
	err := writeSynced(aside, data)
	if err == nil {
		err = os.Rename(aside, path)
	}
	if err == nil {
		err = syncPath(filepath.Dir(path))
	}
	if err == nil {
		// In an enclave a folder's sync may do nothing; the file's own commits the rename on journalling file systems.
		err = syncPath(path)
	}
	if err != nil {
		return writeFailed(file+" could not be written", err)
	}
	return nil
}

func writeSynced(path string, data []byte) error {
	handle, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if _, err = handle.Write(data); err == nil {
		err = handle.Sync()
	}
	return errors.Join(err, handle.Close())
}

func syncPath(path string) error {
	handle, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(handle.Sync(), handle.Close())
}

func readFailed(file string, err error) *Error {
	return &Error{
		CodeStoreReadFailed, file + " could not be read", reason(err),
		"Look at the disk and at what else writes into the folder; nothing was changed.", Invariant,
	}
}

func writeFailed(what string, err error) *Error {
	return &Error{CodeStoreWriteFailed, what, reason(err), "Free space or fix the disk; nothing was lost.", Transient}
}

// reason returns the system's own reason, without paths.
func reason(err error) string {
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		return number.Error()
	}
	return errorType(err)
}
