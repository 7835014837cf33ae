package nacl

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"os"
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

// RFC 8439, 2.5.2 and appendix A.3, the vectors 7 to 11 of which are at the edges of the arithmetic.
func TestPoly1305KnownAnswers(t *testing.T) {
	ones := bytes.Repeat([]byte{0xff}, 16)
	for _, c := range []struct {
		r, s, message, want string
	}{
		{
			"85d6be7857556d337f4452fe42d506a8", "0103808afb0db2fd4abff6af4149f51b",
			hex.EncodeToString([]byte("Cryptographic Forum Research Group")), "a8061dc1305136c6c22b8baf0c0127a9",
		},
		{"02000000000000000000000000000000", "00000000000000000000000000000000", hex.EncodeToString(ones), "03000000000000000000000000000000"},
		{"02000000000000000000000000000000", hex.EncodeToString(ones), "02000000000000000000000000000000", "03000000000000000000000000000000"},
		{"01000000000000000000000000000000", "00000000000000000000000000000000", "fffffffffffffffffffffffffffffffff0ffffffffffffffffffffffffffffff11000000000000000000000000000000", "05000000000000000000000000000000"},
		{"01000000000000000000000000000000", "00000000000000000000000000000000", "fffffffffffffffffffffffffffffffffbfefefefefefefefefefefefefefefe01010101010101010101010101010101", "00000000000000000000000000000000"},
		{"02000000000000000000000000000000", "00000000000000000000000000000000", "fdffffffffffffffffffffffffffffff", "faffffffffffffffffffffffffffffff"},
		{"01000000000000000400000000000000", "00000000000000000000000000000000", "e33594d7505e43b900000000000000003394d7505e4379cd01000000000000000000000000000000000000000000000001000000000000000000000000000000", "14000000000000005500000000000000"},
		{"01000000000000000400000000000000", "00000000000000000000000000000000", "e33594d7505e43b900000000000000003394d7505e4379cd010000000000000000000000000000000000000000000000", "13000000000000000000000000000000"},
	} {
		key := [32]byte(unhex(t, c.r+c.s))
		if tag := poly1305(&key, unhex(t, c.message)); hex.EncodeToString(tag[:]) != c.want {
			t.Errorf("r %s: got %x, want %s", c.r, tag, c.want)
		}
	}
}

// The example of the NaCl paper (D. J. Bernstein, "Cryptography in NaCl", sections 8 and 10).
func TestHSalsa20KnownAnswer(t *testing.T) {
	shared := [32]byte(unhex(t, "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"))
	var zero [16]byte
	key := hsalsa20(&shared, &zero)
	if hex.EncodeToString(key[:]) != "1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389" {
		t.Errorf("the first key is %x", key)
	}
	nonce := [16]byte(unhex(t, "69696ee955b62b73cd62bda875fc73d6"))
	second := hsalsa20(&key, &nonce)
	if hex.EncodeToString(second[:]) != "dc908dda0b9344a953629b733820778880f3ceb421bb61b91cbd4c3e66256ce4" {
		t.Errorf("the second key is %x", second)
	}
}

type boxVector struct {
	Ciphertext string `json:"ciphertext"`
	Public     string `json:"ed25519_public"`
	Private    string `json:"ed25519_seed_and_public"`
	Plaintext  string `json:"plaintext"`
}

// Boxes that were made by the Go library of nodes in the field.
func TestBoxesOfTheFieldOpen(t *testing.T) {
	data, err := os.ReadFile("testdata/v1_box.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []boxVector
	if err := json.Unmarshal(data, &vectors); err != nil || len(vectors) == 0 {
		t.Fatal(len(vectors), err)
	}
	for i, v := range vectors {
		plaintext, err := Open(unhex(t, v.Private)[:32], unhex(t, v.Ciphertext))
		if err != nil || hex.EncodeToString(plaintext) != v.Plaintext {
			t.Errorf("box %d: %v", i, err)
		}
	}
}

func TestABoxOpensForItsRecipientOnlyAndUnaltered(t *testing.T) {
	seed, other := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	for _, size := range []int{0, 1, 31, 32, 33, 63, 64, 65, 96, 97, 1000} {
		plaintext := bytes.Repeat([]byte{0xa5}, size)
		box, err := Seal(public, plaintext, &[NonceSize]byte{3}, &[KeySize]byte{4})
		if err != nil {
			t.Fatal(err)
		}
		if opened, err := Open(seed, box); err != nil || !bytes.Equal(opened, plaintext) {
			t.Errorf("%d bytes: %v", size, err)
		}
		if _, err := Open(other, box); err == nil {
			t.Error("another key opened it")
		}
		for _, at := range []int{0, NonceSize, NonceSize + KeySize, len(box) - 1} {
			bad := bytes.Clone(box)
			bad[at] ^= 1
			if _, err := Open(seed, bad); err == nil {
				t.Errorf("%d bytes with byte %d altered opened", size, at)
			}
		}
	}
	if _, err := Open(seed, make([]byte, Overhead-1)); err == nil {
		t.Error("a short box opened")
	}
}

func TestKeysThatAreNoneAreRefused(t *testing.T) {
	for _, text := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000", // order 4
		"0100000000000000000000000000000000000000000000000000000000000000", // neutral
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // order 2
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", // order 8
		"0200000000000000000000000000000000000000000000000000000000000000", // no point
	} {
		if _, err := montgomery(unhex(t, text)); err == nil {
			t.Errorf("%s was taken", text)
		}
	}
}
