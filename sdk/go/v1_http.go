package handover

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"
)

// refusalsMax bounds how often a v1 exchange that was refused is begun again: a vault that restarted between the two
// requests refuses like one that will never give keys.
const refusalsMax = 3

// HolderV1 hands a node's keys to an accepted vault over handover v1. It is an [http.Handler] for the paths /teerandom
// and /secret.
//
// Serve it only where the node's policy asks for it: v1 has no transcript, no acknowledgement and no canary.
type HolderV1 struct {
	exchange *exchangeV1
	keys     KeysFunc
	mux      *http.ServeMux
}

// NewHolderV1 returns the holder's side of a node over v1.
func NewHolderV1(node Node, keys KeysFunc) (*HolderV1, error) {
	if len(node.NetworkSignatures) == 0 {
		return nil, rejected(CodeSignatureMissing, "v1 cannot be served", "this node has no network signature")
	}
	exchange, err := newExchangeV1(node)
	if err != nil {
		return nil, err
	}
	h := &HolderV1{exchange, keys, http.NewServeMux()}
	h.mux.HandleFunc("GET /teerandom", v1Route("application/octet-stream", h.onHello))
	h.mux.HandleFunc("GET /secret", v1Route("application/json", h.onSecret))
	return h, nil
}

// ServeHTTP answers one request of the protocol.
func (h *HolderV1) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

func (h *HolderV1) onHello(_ context.Context, query url.Values) ([]byte, error) {
	report, err := queryBytes(query, "verifyreport", v1ReportBytes)
	if err != nil {
		return nil, err
	}
	return h.exchange.onHello(report)
}

func (h *HolderV1) onSecret(ctx context.Context, query url.Values) ([]byte, error) {
	key, keyErr := queryBytes(query, "pubkey", 32)
	signature, signatureErr := queryBytes(query, "authSignature", signatureBytes)
	report, reportErr := queryBytes(query, "teereport", v1ReportBytes)
	if err := errors.Join(keyErr, signatureErr, reportErr); err != nil {
		return nil, err
	}
	secret := v1Secret{key, signature, report}
	requester, err := h.exchange.onSecret(secret)
	if err != nil {
		return nil, err
	}
	if err := h.exchange.node.Policy.checkListed(ctx, requester); err != nil {
		return nil, err
	}
	keys := h.keys()
	if keys == nil {
		return nil, &Error{CodeNothingHeld, "no keys were handed over", "this node has none", "", Transient}
	}
	defer keys.Wipe()
	return h.exchange.answer(secret, requester, keys)
}

// v1Route answers as the field does: an empty body for "refused for now", 400 with a text for what cannot succeed.
func v1Route(contentType string, step func(context.Context, url.Values) ([]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := refuseStrangers(r)
		var answer []byte
		if err == nil {
			answer, err = step(r.Context(), r.URL.Query())
		}
		if err != nil {
			refusal := told(err)
			logRefusal(refusal, err)
			if refusal.Kind != Transient {
				w.WriteHeader(http.StatusBadRequest)
				w.Write([]byte(refusal.Code))
			}
			return
		}
		w.Header().Set("Content-Type", contentType)
		w.Write(answer)
	}
}

func queryBytes(query url.Values, name string, size int) ([]byte, error) {
	data, err := DecodeMultibase(query.Get(name))
	if err != nil {
		return nil, err
	}
	if len(data) != size {
		return nil, v1Invalid(name, "it has another length")
	}
	return data, nil
}

// RequestKeysV1 asks the vault at upgraderURL for this node's keys over handover v1 until it gives them, and has them
// sealed. It confirms nothing, since v1 cannot. The caller wipes the key set.
//
// Empty answers and a vault that is not up are retried until ctx ends. A refusal is retried a few times, with each of
// the node's network signatures, since it may come from a vault that restarted in between.
func (n Node) RequestKeysV1(ctx context.Context, upgraderURL string, seal SealFunc) (*KeySet, error) {
	if len(n.NetworkSignatures) == 0 {
		return nil, rejected(CodeSignatureMissing, "v1 cannot be spoken", "this node has no network signature")
	}
	client := newClient(upgraderURL)
	defer client.close()
	refusals := 0
	for pause := pollFirst; ; pause = min(pause*3/2, pollMax) {
		signature := n.NetworkSignatures[refusals%len(n.NetworkSignatures)]
		keys, err := requestOnceV1(ctx, client, newRequesterV1(n, signature))
		if err == nil {
			if _, err = seal(ctx, keys); err == nil {
				return keys, nil
			}
			keys.Wipe()
			return nil, err
		}
		if !IsTransient(err) {
			if refusals++; refusals >= refusalsMax*len(n.NetworkSignatures) || CodeOf(err) != CodeV1Refused {
				return nil, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

func requestOnceV1(ctx context.Context, client *client, r *requesterV1) (*KeySet, error) {
	hello, err := r.hello()
	if err != nil {
		return nil, err
	}
	challenge, err := client.getV1(ctx, "/teerandom", url.Values{"verifyreport": {EncodeMultibase(hello)}}, v1ReportBytes)
	if err != nil {
		return nil, err
	}
	secret, err := r.onChallenge(challenge)
	if err != nil {
		return nil, err
	}
	answer, err := client.getV1(ctx, "/secret", url.Values{
		"pubkey":        {EncodeMultibase(secret.publicKey)},
		"authSignature": {EncodeMultibase(secret.signature)},
		"teereport":     {EncodeMultibase(secret.report)},
	}, v1AnswerBytesMax)
	if err != nil {
		return nil, err
	}
	return r.open(answer)
}

// getV1 sends one request. An empty answer is a refusal for now, and a 400 one whose text is shown.
func (c *client) getV1(ctx context.Context, path string, query url.Values, limit int) ([]byte, error) {
	status, content, err := c.do(ctx, http.MethodGet, path, query.Encode(), nil, int64(limit))
	if err != nil {
		return nil, err
	}
	switch {
	case status == http.StatusOK && len(content) > 0:
		return content, nil
	case status == http.StatusOK && content != nil:
		return nil, &Error{
			CodeV1Refused, "v1 " + path, "the holder answered with an empty body: it refused, or has no secret yet",
			"Look at the holder's log; v1 does not say why.", Transient,
		}
	case status == http.StatusBadRequest && content != nil:
		return nil, &Error{
			CodeV1Refused, "v1 " + path, "the holder refused: " + printable(string(content), 200),
			"Look at the holder's log.", Rejected,
		}
	}
	kind := Rejected
	if status >= 500 {
		kind = Transient
	}
	return nil, &Error{
		CodeAnswerMalformed, "GET " + c.base + path + " failed", "the answer is not of the protocol, or too long",
		"Check which program listens there.", kind,
	}
}
