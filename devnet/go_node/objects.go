package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Objects on disk, AES-256-GCM under application keys, in the format of the reference node in Python
// (devnet/reference_node/objects.py has the layout): the same data are read by versions in either language.
const (
	keySetMagic    = "DCKEYS\x01\x00"
	keySetBytes    = len(keySetMagic) + 64
	objectMagic    = "DCOBJ\x01\x00\x00"
	chunkBytes     = 256 * 1024
	tagBytes       = 16
	objectBytesMax = 256 * 1024 * 1024
	canaryText     = "the canary sings only under the first version's keys"
)

var (
	errMissing    = errors.New("NODE_OBJECT_MISSING")
	errTooLarge   = errors.New("NODE_OBJECT_TOO_LARGE")
	errUnreadable = errors.New("NODE_OBJECT_UNREADABLE")
)

// objectStore is encrypted objects in a data folder. Its keys are only borrowed.
type objectStore struct {
	folder, canary   string
	dataKey, nameKey []byte
	formatTag        string
}

func newKeys() []byte {
	keys := append([]byte(keySetMagic), make([]byte, 64)...)
	rand.Read(keys[len(keySetMagic):])
	return keys
}

func openObjects(data string, keys []byte, formatTag string) (*objectStore, error) {
	if len(keys) != keySetBytes || !bytes.HasPrefix(keys, []byte(keySetMagic)) {
		return nil, errors.New("NODE_KEY_SET_MALFORMED: what was received or unsealed is not a key set of this node")
	}
	s := &objectStore{
		folder: filepath.Join(data, "objects"), canary: filepath.Join(data, "canary.json"),
		dataKey: keys[8:40], nameKey: keys[40:72], formatTag: formatTag,
	}
	if err := os.MkdirAll(s.folder, 0o700); err != nil {
		return nil, err
	}
	left, err := filepath.Glob(filepath.Join(s.folder, "*.part"))
	for _, part := range left {
		err = errors.Join(err, os.Remove(part))
	}
	return s, err
}

func (s *objectStore) path(name string) string {
	mac := hmac.New(sha256.New, s.nameKey)
	io.WriteString(mac, name)
	return filepath.Join(s.folder, hex.EncodeToString(mac.Sum(nil)))
}

func (s *objectStore) cipher(salt []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, s.dataKey, salt, s.formatTag, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// nonce is that of the STREAM construction: frames cannot be reordered, dropped or cut off unnoticed.
func nonce(kind byte, index uint32, last bool) []byte {
	n := make([]byte, 12)
	n[0] = kind
	binary.LittleEndian.PutUint32(n[7:], index)
	if last {
		n[11] = 1
	}
	return n
}

// put stores an object and returns its size; it is there whole, or not at all.
func (s *objectStore) put(name string, body io.Reader) (int64, error) {
	file, err := os.CreateTemp(s.folder, filepath.Base(s.path(name))+".*.part")
	if err != nil {
		return 0, err
	}
	defer os.Remove(file.Name()) // gone already where all went well
	size, err := s.encrypt(name, io.LimitReader(body, objectBytesMax+1), file)
	if size > objectBytesMax {
		err = errTooLarge
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return 0, err
	}
	if err := os.Rename(file.Name(), s.path(name)); err != nil {
		return 0, err
	}
	return size, syncPath(s.folder)
}

func (s *objectStore) encrypt(name string, body io.Reader, out io.Writer) (int64, error) {
	salt := make([]byte, 32)
	rand.Read(salt)
	aead, err := s.cipher(salt)
	if err != nil {
		return 0, err
	}
	head := append([]byte(objectMagic), salt...)
	frame := aead.Seal(nil, nonce('N', 0, true), []byte(name), head)
	if _, err := out.Write(append(binary.LittleEndian.AppendUint16(bytes.Clone(head), uint16(len(frame))), frame...)); err != nil {
		return 0, err
	}
	aad := append(head, name...)
	var size int64
	err = inChunks(body, chunkBytes, func(index uint32, chunk []byte, last bool) error {
		size += int64(len(chunk))
		_, err := out.Write(aead.Seal(nil, nonce('D', index, last), chunk, aad))
		return err
	})
	return size, err
}

// inChunks reads a body in chunks of a size, and tells of each whether it is the last.
func inChunks(body io.Reader, size int, each func(index uint32, chunk []byte, last bool) error) error {
	chunk, following := make([]byte, size), make([]byte, size)
	n, err := io.ReadFull(body, chunk)
	for index := uint32(0); ; index++ {
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
		var next int
		last := err != nil
		if !last {
			next, err = io.ReadFull(body, following)
			last = next == 0 && err == io.EOF
		}
		if each := each(index, chunk[:n], last); each != nil || last {
			return each
		}
		chunk, following, n = following, chunk, next
	}
}

// open returns an object's size and a function that writes it.
func (s *objectStore) open(name string) (size int64, writeTo func(io.Writer) error, err error) {
	file, err := os.Open(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil, errMissing
	}
	if err != nil {
		return 0, nil, err
	}
	found, aead, head, size, err := s.readHead(file)
	if err == nil && found != name {
		err = errUnreadable
	}
	if err != nil {
		file.Close()
		return 0, nil, err
	}
	aad := append(head, name...)
	return size, func(out io.Writer) error {
		defer file.Close()
		return inChunks(file, chunkBytes+tagBytes, func(index uint32, frame []byte, last bool) error {
			plain, err := aead.Open(frame[:0], nonce('D', index, last), frame, aad)
			if err != nil {
				return errUnreadable
			}
			_, err = out.Write(plain)
			return err
		})
	}, nil
}

// readHead decrypts the name at the beginning of a file and returns it with the size of the object.
func (s *objectStore) readHead(file *os.File) (name string, aead cipher.AEAD, head []byte, size int64, err error) {
	fixed := make([]byte, 42)
	if _, err = io.ReadFull(file, fixed); err != nil || !bytes.HasPrefix(fixed, []byte(objectMagic)) {
		return "", nil, nil, 0, errUnreadable
	}
	head = fixed[:40]
	frame := make([]byte, binary.LittleEndian.Uint16(fixed[40:]))
	if _, err = io.ReadFull(file, frame); err != nil {
		return "", nil, nil, 0, errUnreadable
	}
	if aead, err = s.cipher(head[8:]); err != nil {
		return "", nil, nil, 0, err
	}
	plain, err := aead.Open(nil, nonce('N', 0, true), frame, head)
	if err != nil {
		return "", nil, nil, 0, errUnreadable
	}
	info, err := file.Stat()
	if err != nil {
		return "", nil, nil, 0, err
	}
	stored := info.Size() - int64(len(fixed)+len(frame))
	frames := max(1, (stored+chunkBytes+tagBytes-1)/(chunkBytes+tagBytes))
	return string(plain), aead, bytes.Clone(head), stored - frames*tagBytes, nil
}

func (s *objectStore) remove(name string) error {
	err := os.Remove(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return errMissing
	}
	return errors.Join(err, syncPath(s.folder))
}

// sizes returns the names of all objects with their sizes.
func (s *objectStore) sizes() (map[string]int64, error) {
	entries, err := os.ReadDir(s.folder)
	if err != nil {
		return nil, err
	}
	found := map[string]int64{}
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), ".part") {
			continue
		}
		file, err := os.Open(filepath.Join(s.folder, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		name, _, _, size, err := s.readHead(file)
		file.Close()
		if err != nil {
			return nil, err
		}
		found[name] = size
	}
	return found, nil
}

// isEmpty tells whether there is neither an object nor a canary.
func (s *objectStore) isEmpty() bool {
	entries, err := os.ReadDir(s.folder)
	_, noCanary := os.Stat(s.canary)
	return err == nil && len(entries) == 0 && errors.Is(noCanary, fs.ErrNotExist)
}

type canaryRecord struct {
	WrittenBy string `json:"written_by"`
	Salt      string `json:"salt"`
	Record    string `json:"record"`
}

// writeCanary writes the canary record, once, by the first version: later versions only read it.
func (s *objectStore) writeCanary(version string) error {
	salt := make([]byte, 32)
	rand.Read(salt)
	aead, err := s.cipher(salt)
	if err != nil {
		return err
	}
	record := aead.Seal(nil, nonce('C', 0, true), []byte(canaryText), append([]byte(objectMagic), salt...))
	data, err := json.Marshal(canaryRecord{version, hex.EncodeToString(salt), hex.EncodeToString(record)})
	if err != nil {
		return err
	}
	return writeDurably(s.canary, data)
}

// canarySings tells whether the canary record decrypts, read from disk anew.
func (s *objectStore) canarySings() bool {
	var found canaryRecord
	data, err := os.ReadFile(s.canary)
	if err != nil || json.Unmarshal(data, &found) != nil {
		return false
	}
	salt, saltErr := hex.DecodeString(found.Salt)
	record, recordErr := hex.DecodeString(found.Record)
	aead, err := s.cipher(salt)
	if errors.Join(saltErr, recordErr, err) != nil {
		return false
	}
	text, err := aead.Open(nil, nonce('C', 0, true), record, append([]byte(objectMagic), salt...))
	return err == nil && hmac.Equal(text, []byte(canaryText))
}

// writeDurably writes aside, syncs, renames, and syncs the folder.
func writeDurably(path string, data []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.part")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return fmt.Errorf("NODE_DISK_FAILED: %w", err)
	}
	return syncPath(filepath.Dir(path))
}

func syncPath(path string) error {
	handle, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(handle.Sync(), handle.Close())
}
