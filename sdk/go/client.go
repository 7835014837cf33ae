package handover

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	exchangeTimeout  = 30 * time.Second
	pollFirst        = 100 * time.Millisecond
	pollMax          = 2 * time.Second
	lostAnswerTries  = 3
	lostAnswerPause  = 100 * time.Millisecond
	connectionsOfUse = 2 // the receipt travels while the keys are sealed
)

// SealFunc seals a key set: it writes the keys sealed to disk, reads them back, unseals them, opens the canary of older
// data if there is any, and returns whether there was one. [Store.Put] does the first three.
//
// Its error ends the whole call unconfirmed, so the vault keeps its copy. The key set is only borrowed.
type SealFunc func(ctx context.Context, keys *KeySet) (canary bool, err error)

// RequestKeys asks the vault at upgraderURL for this node's keys until it gives them, has them sealed, and confirms.
//
// wanted is the key set id of the node's marker, or "" where there is none. Transient refusals (no permit yet, the vault
// is not up) are retried until ctx ends; every other error is returned. The caller wipes the key set.
func (n Node) RequestKeys(ctx context.Context, upgraderURL, wanted string, seal SealFunc) (*KeySet, error) {
	client := newClient(upgraderURL)
	defer client.close()
	var sealed *KeySet
	for pause := pollFirst; ; pause = min(pause*3/2, pollMax) {
		keys, sealErr, err := n.requestOnce(ctx, client, wanted, seal)
		if err == nil {
			sealed.Wipe()
			return keys, nil
		}
		if keys != nil { // sealed, but not confirmed
			sealed.Wipe()
			sealed = keys
		}
		if sealed != nil && CodeOf(err) == CodePermitDurable {
			return sealed, nil // the confirmation arrived, only its answer was lost
		}
		if sealErr || !IsTransient(err) {
			sealed.Wipe()
			return nil, err
		}
		select {
		case <-ctx.Done():
			sealed.Wipe()
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

// requestOnce runs one try. It returns keys that were sealed also where they could not be confirmed, and whether it was
// the sealing that failed.
func (n Node) requestOnce(
	ctx context.Context, client *client, wanted string, seal SealFunc,
) (keys *KeySet, sealErr bool, err error) {
	r, err := newRequester(n, wanted)
	if err != nil {
		return nil, false, err
	}
	defer r.forget()
	challenge, err := client.post(ctx, "/v2/hello", r.hello())
	if err != nil {
		return nil, false, err
	}
	request, err := r.onChallenge(challenge)
	if err != nil {
		return nil, false, err
	}
	answer, err := client.post(ctx, "/v2/request", request)
	if err != nil {
		return nil, false, err
	}
	if keys, err = r.onDelivery(answer); err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	received := make(chan error, 1)
	go func(message []byte) {
		answer, err := client.insist(ctx, "/v2/received", message)
		if err == nil {
			err = r.acknowledged(answer, "received")
		}
		received <- err
	}(r.received())
	canary, err := seal(ctx, keys)
	if err != nil {
		keys.Wipe()
		cancel()
		<-received
		return nil, true, err
	}
	if err := <-received; err != nil {
		return keys, false, err
	}
	return keys, false, n.confirm(ctx, client, r, canary)
}

func (n Node) confirm(ctx context.Context, client *client, r *requester, canary bool) error {
	message, err := r.durable(canary)
	if err != nil {
		return err
	}
	answer, err := client.insist(ctx, "/v2/durable", message)
	if err != nil {
		return err
	}
	return r.acknowledged(answer, "durable")
}

// client speaks with one peer: no proxy, no redirects, no compression, bounded answers.
type client struct {
	base string
	http *http.Client
}

func newClient(base string) *client {
	return &client{strings.TrimRight(base, "/"), &http.Client{
		Timeout: exchangeTimeout,
		Transport: &http.Transport{
			DisableCompression:  true, // unpacked, an answer could be a thousand times its limit
			MaxIdleConnsPerHost: connectionsOfUse,
			DialContext:         (&net.Dialer{Timeout: exchangeTimeout}).DialContext,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (c *client) close() { c.http.CloseIdleConnections() }

func (c *client) post(ctx context.Context, path string, body []byte) ([]byte, error) {
	status, content, err := c.do(ctx, http.MethodPost, path, "", body, messageBytesMax)
	if err != nil {
		return nil, err
	}
	if status == http.StatusOK && content != nil {
		return content, nil
	}
	if refusal := errorOf(content); refusal != nil {
		return nil, refusal
	}
	kind := Rejected
	if status >= 500 {
		kind = Transient
	}
	return nil, &Error{
		CodeAnswerMalformed, "POST " + c.base + path + " failed",
		"status " + http.StatusText(status) + " with an answer that is not of the protocol",
		"Check which program listens there.", kind,
	}
}

// insist sends a message that may be repeated again after a lost answer.
func (c *client) insist(ctx context.Context, path string, body []byte) ([]byte, error) {
	pause := lostAnswerPause
	for try := 1; ; try++ {
		answer, err := c.post(ctx, path, body)
		if CodeOf(err) != CodePeerUnreachable || try == lostAnswerTries || ctx.Err() != nil {
			return answer, err
		}
		time.Sleep(pause)
		pause *= 2
	}
}

// do returns status and body of the answer; the body is nil where it is longer than limit.
func (c *client) do(
	ctx context.Context, method, path, query string, body []byte, limit int64,
) (int, []byte, error) {
	address := c.base + path
	if query != "" {
		address += "?" + query
	}
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return 0, nil, rejected(CodePeerUnreachable, method+" "+c.base+path+" failed", "the address cannot be used")
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept-Encoding", "identity")
	answer, err := c.http.Do(request)
	if err != nil {
		return 0, nil, c.unreachable(method, path, err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(io.LimitReader(answer.Body, limit+1))
	if err != nil {
		return 0, nil, c.unreachable(method, path, err)
	}
	if int64(len(content)) > limit {
		return answer.StatusCode, nil, nil
	}
	return answer.StatusCode, content, nil
}

func (c *client) unreachable(method, path string, err error) *Error {
	// The query is not shown: over v1 it is a report of half a kilobyte.
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	return &Error{
		CodePeerUnreachable, method + " " + c.base + path + " failed", printable(err.Error(), 200),
		"Check that the process runs and listens there.", Transient,
	}
}
