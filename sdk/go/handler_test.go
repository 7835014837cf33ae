package handover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// fakeVault is a holder over HTTP in which a test can change how one path is answered.
type fakeVault struct {
	*httptest.Server
	holder *Holder
	keys   *keyBox
}

func newVault(t *testing.T, node Node, around func(http.Handler) http.Handler) fakeVault {
	t.Helper()
	box := &keyBox{keys: newKeys(t)}
	holder, err := NewHolder(node, box.get)
	if err != nil {
		t.Fatal(err)
	}
	return fakeVault{onLoopback(t, holder, around), holder, box}
}

// onLoopback runs a handler on loopback until the end of the test; around, unless it is nil, may change its answers.
func onLoopback(t *testing.T, handler http.Handler, around func(http.Handler) http.Handler) *httptest.Server {
	t.Helper()
	if around != nil {
		handler = around(handler)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server
}

func sealed(canary bool) SealFunc {
	return func(context.Context, *KeySet) (bool, error) { return canary, nil }
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestKeysAreRequestedSealedAndConfirmed(t *testing.T) {
	vault := newVault(t, newNode(t, "vault"), nil)
	asks := newNode(t, "node")
	if _, confirmed := vault.holder.CollectedBy(); confirmed {
		t.Fatal("confirmed before anything was asked")
	}
	keys, err := asks.RequestKeys(deadline(t), vault.URL+"/", "", sealed(true))
	if err != nil || !bytes.Equal(keys.Bytes(), theKeys) {
		t.Fatal(keys, err)
	}
	if by, confirmed := vault.holder.CollectedBy(); !confirmed || by != idOf(asks) {
		t.Errorf("collected by %s", by)
	}
}

func TestWhatMayPassIsAskedAgainAndWhatMayNotIsReturned(t *testing.T) {
	vault := newVault(t, newNode(t, "vault"), nil)
	keys := vault.keys.keys
	vault.keys.keys = nil
	asks := newNode(t, "node")
	time.AfterFunc(300*time.Millisecond, func() {
		vault.keys.mu.Lock()
		vault.keys.keys = keys
		vault.keys.mu.Unlock()
	})
	if _, err := asks.RequestKeys(deadline(t), vault.URL, "", sealed(false)); err != nil {
		t.Error(err)
	}
	_, err := asks.RequestKeys(deadline(t), vault.URL, strings.Repeat("0", 64), sealed(false))
	needCode(t, CodeKeySetMismatch, err)
	asks.Policy.Genesis = [32]byte{}
	_, err = asks.RequestKeys(deadline(t), vault.URL, "", sealed(false))
	needCode(t, CodeGenesisMismatch, err)
}

func TestAVaultThatIsNotThereIsAskedUntilTheContextEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
	defer cancel()
	_, err := newNode(t, "node").RequestKeys(ctx, "http://127.0.0.1:1", "", sealed(false))
	if !errors.Is(err, context.DeadlineExceeded) || CodeOf(err) != CodePeerUnreachable {
		t.Error(err)
	}
}

func TestWhatCannotBeSealedIsNeitherConfirmedNorRetried(t *testing.T) {
	var durable atomic.Int32
	vault := newVault(t, newNode(t, "vault"), func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v2/durable" {
				durable.Add(1)
			}
			next.ServeHTTP(w, r)
		})
	})
	tries := 0
	_, err := newNode(t, "node").RequestKeys(deadline(t), vault.URL, "", func(context.Context, *KeySet) (bool, error) {
		tries++
		return false, &Error{CodeStoreWriteFailed, "disk", "full", "", Transient}
	})
	needCode(t, CodeStoreWriteFailed, err)
	if durable.Load() != 0 || tries != 1 {
		t.Errorf("durable was sent %d times after %d tries", durable.Load(), tries)
	}
}

func TestALostConfirmationIsRepeatedAndADurableOneIsEnough(t *testing.T) {
	var lost atomic.Int32
	losing := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v2/durable" && lost.Add(1) <= lostAnswerTries {
				next.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler) // the answer does not arrive
			}
			if r.URL.Path == "/v2/hello" && lost.Load() > 0 {
				writeError(w, rejected(CodePermitDurable, "the request was refused", "it is durable already"))
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	vault := newVault(t, newNode(t, "vault"), losing)
	keys, err := newNode(t, "node").RequestKeys(deadline(t), vault.URL, "", sealed(true))
	if err != nil || !bytes.Equal(keys.Bytes(), theKeys) {
		t.Fatal(keys, err)
	}
	if lost.Load() != lostAnswerTries {
		t.Errorf("durable was sent %d times", lost.Load())
	}
}

func TestStrangeAnswersAreNotOfTheProtocol(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		code   Code
		kind   Kind
	}{
		"a page":         {200, "<html>", CodeMessageMalformed, Rejected},
		"an error page":  {502, "<html>", CodeAnswerMalformed, Transient},
		"a redirect":     {302, "", CodeAnswerMalformed, Rejected},
		"too long":       {200, strings.Repeat(" ", messageBytesMax+1), CodeAnswerMalformed, Rejected},
		"a refusal":      {409, `{"code":"RELEASE_REVOKED","what":"a","why":"b","action":"","kind":"rejected"}`, "RELEASE_REVOKED", Rejected},
		"an order":       {500, `{"code":"RELEASE_REVOKED","what":"a","why":"b","action":"","kind":"invariant"}`, "RELEASE_REVOKED", Rejected},
		"half a refusal": {409, `{"code":"RELEASE_REVOKED"}`, CodeAnswerMalformed, Rejected},
		"no code":        {409, `{"code":"a b","what":"a","why":"b","action":"","kind":"rejected"}`, CodeAnswerMalformed, Rejected},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
			w.WriteHeader(c.status)
			io.WriteString(w, c.body)
		}))
		client := newClient(server.URL)
		_, err := client.post(t.Context(), "/v2/hello", nil)
		if err == nil {
			_, err = decodeChallenge([]byte(c.body))
		}
		if e, _ := errors.AsType[*Error](err); e == nil || e.Code != c.code || e.Kind != c.kind {
			t.Errorf("%s: %v", name, err)
		}
		client.close()
		server.Close()
	}
}

func TestAPeersTextsCannotForgeALineOfTheLog(t *testing.T) {
	refusal := errorOf([]byte(`{"code":"A","what":"x\nERROR all is lost","why":"` + strings.Repeat("é", 900) + `","action":"","kind":"rejected"}`))
	if strings.Contains(refusal.Error(), "\n") || len([]rune(refusal.Why)) != 500 {
		t.Errorf("%q", refusal.What)
	}
}

func TestAHolderAnswersLoopbackProgramsOnly(t *testing.T) {
	vault := newVault(t, newNode(t, "node"), nil)
	r, _ := newRequester(newNode(t, "vault"), "")
	for name, c := range map[string]struct {
		method, path, host, header string
		status                     int
	}{
		"good":          {"POST", "/v2/hello", "", "", 200},
		"localhost":     {"POST", "/v2/hello", "localhost:6667", "", 200},
		"IPv6":          {"POST", "/v2/hello", "[::1]:6667", "", 200},
		"another host":  {"POST", "/v2/hello", "evil.example", "", 400},
		"a lookalike":   {"POST", "/v2/hello", "127.0.0.1.evil.example:6667", "", 400},
		"a browser":     {"POST", "/v2/hello", "", "Origin", 400},
		"another one":   {"POST", "/v2/hello", "", "Sec-Fetch-Site", 400},
		"GET":           {"GET", "/v2/hello", "", "", 404},
		"no such path":  {"POST", "/v2/other", "", "", 404},
		"not its order": {"POST", "/v2/durable", "", "", 400},
	} {
		request, _ := http.NewRequest(c.method, vault.URL+c.path, bytes.NewReader(r.hello()))
		request.Host = c.host
		if c.header != "" {
			request.Header.Set(c.header, "http://evil.example")
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		var refusal Error
		if answer.StatusCode != c.status {
			t.Errorf("%s: status %d", name, answer.StatusCode)
		}
		if answer.StatusCode != 200 && (json.NewDecoder(answer.Body).Decode(&refusal) != nil || refusal.Code == "") {
			t.Errorf("%s: no refusal in the answer", name)
		}
		answer.Body.Close()
	}
}

func TestABodyOverTheLimitIsRefused(t *testing.T) {
	vault := newVault(t, newNode(t, "node"), nil)
	answer, err := http.Post(vault.URL+"/v2/hello", "application/json", bytes.NewReader(bytes.Repeat([]byte{' '}, messageBytesMax+1)))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("status %d", answer.StatusCode)
	}
}
