package handover

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"handover/sgx"
)

const (
	bodyTimeout   = 10 * time.Second
	answerTimeout = 10 * time.Second
)

// KeysFunc returns a copy of the node's current keys, which the holder wipes after use, or nil while it has none.
type KeysFunc func() *KeySet

// Holder hands a node's keys to an accepted vault over handover v2. It is an [http.Handler] for the paths /v2/hello,
// /v2/request, /v2/received and /v2/durable, and safe for concurrent use.
type Holder struct {
	exchange *exchange
	keys     KeysFunc
	mux      *http.ServeMux

	mu          sync.Mutex
	collectedBy sgx.EnclaveID
}

// NewHolder returns the holder's side of a node.
func NewHolder(node Node, keys KeysFunc) (*Holder, error) {
	exchange, err := newExchange(node)
	if err != nil {
		return nil, err
	}
	h := &Holder{exchange: exchange, keys: keys, mux: http.NewServeMux()}
	h.route("/v2/hello", func(_ context.Context, body []byte) ([]byte, error) { return exchange.onHello(body) })
	h.route("/v2/request", h.onRequest)
	h.route("/v2/received", func(_ context.Context, body []byte) ([]byte, error) { return exchange.onReceived(body) })
	h.route("/v2/durable", h.onDurable)
	h.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, rejected(codePathUnknown, r.Method+" was refused", "the path or method is not of the protocol"))
	})
	return h, nil
}

// ServeHTTP answers one message of the protocol.
func (h *Holder) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// CollectedBy returns the vault that last confirmed that it holds the keys durably, and false if none did.
func (h *Holder) CollectedBy() (sgx.EnclaveID, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.collectedBy, h.collectedBy != sgx.EnclaveID{}
}

func (h *Holder) onRequest(ctx context.Context, body []byte) ([]byte, error) {
	request, err := h.exchange.onRequest(ctx, body)
	if err != nil {
		return nil, err
	}
	keys := h.keys()
	if keys == nil {
		return nil, &Error{
			CodeNothingHeld, "the request was refused", "this node has no application keys yet",
			"Ask again once it serves.", Transient,
		}
	}
	defer keys.Wipe()
	return h.exchange.deliver(request, keys)
}

func (h *Holder) onDurable(_ context.Context, body []byte) ([]byte, error) {
	answer, vault, err := h.exchange.onDurable(body)
	if err == nil {
		h.mu.Lock()
		h.collectedBy = vault
		h.mu.Unlock()
	}
	return answer, err
}

func (h *Holder) route(path string, step func(context.Context, []byte) ([]byte, error)) {
	h.mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		answer, err := answerTo(w, r, step)
		if err != nil {
			writeError(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(answer)
	})
}

func answerTo(
	w http.ResponseWriter, r *http.Request, step func(context.Context, []byte) ([]byte, error),
) ([]byte, error) {
	if err := refuseStrangers(r); err != nil {
		return nil, err
	}
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Now().Add(bodyTimeout)) // not every ResponseWriter has deadlines
	body, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	control.SetReadDeadline(time.Time{})
	control.SetWriteDeadline(time.Now().Add(answerTimeout))
	return step(r.Context(), body)
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, messageBytesMax))
	if err == nil {
		return body, nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, rejected(CodeMessageTooLarge, "the request was refused", "its body is over the limit")
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, &Error{
			codeRequestTooSlow, "the request was dropped", "its body did not arrive in time", "", Transient,
		}
	}
	return nil, malformed("request", "its body broke off")
}

// refuseStrangers refuses what a web page in a browser sends: it reaches loopback too, by its own name or by one that
// resolves to loopback.
func refuseStrangers(r *http.Request) error {
	if r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" {
		return malformed("request", "a web page in a browser sent it")
	}
	if !isLoopback(r.Host) {
		return malformed("request", "its Host is not a loopback name")
	}
	return nil
}

func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	if len(host) > 1 && host[0] == '[' && host[len(host)-1] == ']' {
		host = host[1 : len(host)-1]
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

var statusOfCode = map[Code]int{
	CodeMessageMalformed: http.StatusBadRequest,
	codePathUnknown:      http.StatusNotFound,
	codeRequestTooSlow:   http.StatusRequestTimeout,
	CodeMessageTooLarge:  http.StatusRequestEntityTooLarge,
}

var statusOfKind = map[Kind]int{
	Rejected:  http.StatusConflict,
	Transient: http.StatusServiceUnavailable,
	Invariant: http.StatusInternalServerError,
}

func writeError(w http.ResponseWriter, err error) {
	refusal := told(err)
	logRefusal(refusal, err)
	status, ok := statusOfCode[refusal.Code]
	if !ok {
		status = statusOfKind[refusal.Kind]
	}
	body, _ := json.Marshal(refusal)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body)
}

// refusalsLogged remembers refusals, so that who polls every second and is refused alike is not worth a line each time.
var refusalsLogged = struct {
	sync.Mutex
	at map[string]time.Time
}{at: map[string]time.Time{}}

const (
	logAgainAfter     = 10 * time.Minute
	refusalsLoggedMax = 256
)

func logRefusal(refusal *Error, err error) {
	text := refusal.Error()
	refusalsLogged.Lock()
	last, known := refusalsLogged.at[text]
	fresh := !known || time.Since(last) > logAgainAfter
	if fresh {
		if len(refusalsLogged.at) >= refusalsLoggedMax {
			clear(refusalsLogged.at)
		}
		refusalsLogged.at[text] = time.Now()
	}
	refusalsLogged.Unlock()
	if fresh {
		level := slog.LevelWarn
		if refusal.Kind == Transient {
			level = slog.LevelInfo
		}
		slog.Log(context.Background(), level, text, "cause", errorType(err))
	}
}
