package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"handover"
	"handover/sgx"
)

// messageBytes is about the size of a message and of its answer.
const messageBytes = 2500

// part is what the exchange cannot do without: how often both sides together need it, and the call.
type part struct {
	name  string
	times int
	call  func() error
}

// bench asks for the keys again and again, each time into an empty store, and times the parts in between, so that caches
// are as warm or cold for them.
func bench(node handover.Node, url string, rounds int, folder, echo string) error {
	parts, err := parts(node, folder, echo)
	if err != nil {
		return err
	}
	whole := make([]time.Duration, rounds)
	alone := make([][]time.Duration, len(parts))
	for round := range rounds {
		store, err := handover.OpenStore(filepath.Join(folder, strconv.Itoa(round)), node.TEE, true)
		if err != nil {
			return err
		}
		seal := func(_ context.Context, keys *handover.KeySet) (bool, error) { return true, store.Put(keys) }
		began := time.Now()
		keys, err := node.RequestKeys(context.Background(), url, "", seal)
		if err != nil {
			return err
		}
		whole[round] = time.Since(began)
		keys.Wipe()
		for i, p := range parts {
			began := time.Now()
			if err := p.call(); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			alone[i] = append(alone[i], time.Since(began))
		}
	}
	slices.Sort(whole)
	facts := map[string]any{"handover_median_ms": median(whole), "handover_p90_ms": ms(whole[rounds*9/10])}
	var sum float64
	for i, p := range parts {
		slices.Sort(alone[i])
		each := median(alone[i]) * float64(p.times)
		facts[fmt.Sprintf("primitive %d x %s", p.times, p.name)] = each
		sum += each
	}
	facts["primitives_ms"] = sum
	say(facts)
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(sorted []time.Duration) float64 { return ms(sorted[len(sorted)/2]) }

func parts(node handover.Node, folder, echo string) ([]part, error) {
	own, err := handover.SelfReport(node.TEE)
	if err != nil {
		return nil, err
	}
	kem := hpke.MLKEM768X25519()
	private, err := kem.GenerateKey()
	if err != nil {
		return nil, err
	}
	info, plaintext := make([]byte, 32), make([]byte, 96)
	seal := func() ([]byte, error) {
		return hpke.Seal(private.PublicKey(), hpke.HKDFSHA256(), hpke.AES256GCM(), info, plaintext)
	}
	ciphertext, err := seal()
	if err != nil {
		return nil, err
	}
	public, signing, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	signature := ed25519.Sign(signing, info)
	keys, err := handover.NewKeySet(plaintext)
	if err != nil {
		return nil, err
	}
	puts := 0
	return []part{
		{"KEM key pair", 1, func() error { _, err := kem.GenerateKey(); return err }},
		{"HPKE seal", 1, func() error { _, err := seal(); return err }},
		{"HPKE open", 1, func() error {
			_, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.AES256GCM(), info, ciphertext)
			return err
		}},
		{"ed25519 verify", 2, func() error { ed25519.Verify(public, info, signature); return nil }},
		{"report by the TEE", 4, func() error { _, err := node.TEE.Report(own.TargetInfo(), [sgx.ReportDataSize]byte{}); return err }},
		{"report verified", 4, func() error { return node.TEE.Verify(own) }},
		{"HMAC", 2, func() error { hmac.New(sha256.New, info).Sum(nil); return nil }},
		{"keys sealed, synced, read back", 1, func() error {
			puts++
			store, err := handover.OpenStore(filepath.Join(folder, "alone", strconv.Itoa(puts)), node.TEE, true)
			if err != nil {
				return err
			}
			return store.Put(keys)
		}},
		{"round trip", 4, roundTrip(echo)},
	}, nil
}

// roundTrip posts as many bytes as a message has to another process and reads as many.
func roundTrip(url string) func() error {
	body := bytes.Repeat([]byte{'x'}, messageBytes)
	return func() error {
		answer, err := http.Post(url+"/echo", "application/json", bytes.NewReader(body))
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		_, err = io.Copy(io.Discard, answer.Body)
		return err
	}
}
