package handover

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestAKeySetIsNeverShown(t *testing.T) {
	keys := newKeys(t)
	shown := fmt.Sprintf("%v %+v %#v %s %q %x %d", keys, keys, keys, keys, keys, keys, keys)
	if strings.Contains(shown, string(theKeys[:8])) || strings.Contains(shown, fmt.Sprintf("%x", theKeys[:8])) || strings.Contains(shown, fmt.Sprint(theKeys[0])+" ") {
		t.Error(shown)
	}
	if text, err := json.Marshal(map[string]any{"keys": keys}); err == nil {
		t.Errorf("it was marshalled to %s", text)
	}
}

func TestAWipedKeySetIsOverwrittenAndCannotBeRead(t *testing.T) {
	keys := newKeys(t)
	data, copied := keys.Bytes(), keys.Clone()
	keys.Wipe()
	keys.Wipe()
	(*KeySet)(nil).Wipe()
	for _, b := range data {
		if b != 0 {
			t.Fatal("bytes are left")
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a wiped key set was read")
		}
	}()
	if string(copied.Bytes()) != string(theKeys) {
		t.Error("a copy went with it")
	}
	keys.Bytes()
}

func TestAKeySetHasBounds(t *testing.T) {
	for size, fits := range map[int]bool{0: false, 1: true, KeySetBytesMax: true, KeySetBytesMax + 1: false} {
		if _, err := NewKeySet(make([]byte, size)); (err == nil) != fits {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}
