package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"handover"
)

var objectName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$`)

// routes are the node's contract with clients and agent. A node of handover v1 has fewer, as nodes in the field.
func (n *node) routes() (http.Handler, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /objects", n.serving(n.listObjects))
	mux.HandleFunc("PUT /objects/{name}", n.named(n.putObject))
	mux.HandleFunc("GET /objects/{name}", n.named(n.getObject))
	mux.HandleFunc("DELETE /objects/{name}", n.named(n.deleteObject))
	if n.policy.has("stats") {
		mux.HandleFunc("GET /stats", n.serving(n.stats))
	}
	if n.policy.Handover == "v1" {
		holder, err := handover.NewHolderV1(n.party, n.keysFor)
		if err != nil {
			return nil, err
		}
		mux.Handle("/teerandom", holder)
		mux.Handle("/secret", holder)
		mux.HandleFunc("GET /version", n.serving(func(w http.ResponseWriter, r *http.Request, _ *objectStore) { n.version(w, r) }))
		mux.HandleFunc("GET /canary", n.serving(n.canary))
		return mux, nil
	}
	holder, err := handover.NewHolder(n.party, n.keysFor)
	if err != nil {
		return nil, err
	}
	mux.Handle("/v2/", holder)
	mux.HandleFunc("GET /version", n.version)
	mux.HandleFunc("GET /health", n.health)
	mux.HandleFunc("POST /commit", n.commit)
	return mux, nil
}

type objectHandler func(w http.ResponseWriter, r *http.Request, objects *objectStore)

// serving calls a handler with the objects, or answers that the node does not serve yet.
func (n *node) serving(handler objectHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		status, objects := n.state()
		if status != "serving" {
			refuse(w, http.StatusServiceUnavailable, "NODE_NOT_SERVING", "the node is "+status)
			return
		}
		handler(w, r, objects)
	}
}

// named is serving for requests that name an object.
func (n *node) named(handler objectHandler) http.HandlerFunc {
	return n.serving(func(w http.ResponseWriter, r *http.Request, objects *objectStore) {
		if !objectName.MatchString(r.PathValue("name")) {
			refuse(w, http.StatusBadRequest, "NODE_NAME_BAD", "a name has 1 to 200 of the characters A-Z a-z 0-9 . _ -")
			return
		}
		handler(w, r, objects)
	})
}

func (n *node) version(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintf(w, "%s@%s", n.id, n.policy.Version)
}

func (n *node) canary(w http.ResponseWriter, _ *http.Request, objects *objectStore) {
	if !objects.canarySings() {
		refuse(w, http.StatusServiceUnavailable, "NODE_CANARY_UNREADABLE", "the canary record does not decrypt")
		return
	}
	answer(w, http.StatusOK, map[string]bool{"canary": true})
}

func (n *node) health(w http.ResponseWriter, _ *http.Request) {
	n.mu.Lock()
	body := map[string]any{
		"status": n.status, "canary": nil, "enclave_id": n.id.String(), "version": n.policy.Version,
		"tee": n.party.TEE.Kind(), "committed": n.isCommitted(), "key_set_id": nil, "error": nil,
	}
	objects, keys, failure := n.objects, n.keys, n.failure
	n.mu.Unlock()
	if objects != nil {
		body["canary"] = objects.canarySings()
	}
	if keys != nil {
		body["key_set_id"] = keys.ID()
	}
	status := http.StatusOK
	if failure != nil {
		status = http.StatusServiceUnavailable
		code := handover.CodeOf(failure)
		if code == "" {
			code = "NODE_FAILED"
		}
		body["error"] = map[string]string{"code": string(code), "why": failure.Error()}
	}
	answer(w, status, body)
}

// commit remembers durably that there is no way back to the predecessor any more.
func (n *node) commit(w http.ResponseWriter, r *http.Request) {
	var body struct {
		EnclaveID string `json:"enclave_id"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&body); err != nil || body.EnclaveID == "" {
		refuse(w, http.StatusBadRequest, "NODE_NAME_BAD", "the body must be JSON with enclave_id")
		return
	}
	if body.EnclaveID != n.id.String() {
		refuse(w, http.StatusConflict, "NODE_COMMIT_NOT_MINE", "this node is "+n.id.String())
		return
	}
	if status, _ := n.state(); status != "serving" {
		refuse(w, http.StatusServiceUnavailable, "NODE_NOT_SERVING", "the node is "+status)
		return
	}
	if !n.isCommitted() {
		if err := writeDurably(n.commitFile(), []byte("committed\n")); err != nil {
			refuseFor(w, err)
			return
		}
	}
	answer(w, http.StatusOK, map[string]bool{"committed": true})
}

func (n *node) commitFile() string { return filepath.Join(n.data, "commits", n.id.String()) }

func (n *node) isCommitted() bool {
	_, err := os.Stat(n.commitFile())
	return err == nil
}

func (n *node) listObjects(w http.ResponseWriter, _ *http.Request, objects *objectStore) {
	sizes, err := objects.sizes()
	if err != nil {
		refuseFor(w, err)
		return
	}
	answer(w, http.StatusOK, sizes)
}

func (n *node) stats(w http.ResponseWriter, _ *http.Request, objects *objectStore) {
	sizes, err := objects.sizes()
	if err != nil {
		refuseFor(w, err)
		return
	}
	var total int64
	for _, size := range sizes {
		total += size
	}
	answer(w, http.StatusOK, map[string]int64{"objects": int64(len(sizes)), "bytes": total})
}

func (n *node) putObject(w http.ResponseWriter, r *http.Request, objects *objectStore) {
	size, err := objects.put(r.PathValue("name"), r.Body)
	if err != nil {
		refuseFor(w, err)
		return
	}
	answer(w, http.StatusCreated, map[string]int64{"size": size})
}

func (n *node) getObject(w http.ResponseWriter, r *http.Request, objects *objectStore) {
	size, writeTo, err := objects.open(r.PathValue("name"))
	if err != nil {
		refuseFor(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	if err := writeTo(w); err != nil {
		// Headers are out: only a broken connection tells the client that what it has is not the object.
		slog.Error("an object was not read to its end", "error", err)
		panic(http.ErrAbortHandler)
	}
}

func (n *node) deleteObject(w http.ResponseWriter, r *http.Request, objects *objectStore) {
	if err := objects.remove(r.PathValue("name")); err != nil {
		refuseFor(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func answer(w http.ResponseWriter, status int, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		panic(err) // maps of text and numbers only
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(data)
}

func refuse(w http.ResponseWriter, status int, code, why string) {
	answer(w, status, map[string]string{"code": code, "why": why})
}

func refuseFor(w http.ResponseWriter, err error) {
	switch pathError, onDisk := errors.AsType[*fs.PathError](err); {
	case errors.Is(err, errMissing):
		refuse(w, http.StatusNotFound, err.Error(), "there is no such object")
	case errors.Is(err, errTooLarge):
		refuse(w, http.StatusRequestEntityTooLarge, err.Error(), "an object may have 256 MiB")
	case errors.Is(err, errUnreadable):
		refuse(w, http.StatusServiceUnavailable, err.Error(), "an object does not decrypt under these keys")
	case onDisk:
		refuse(w, http.StatusInsufficientStorage, "NODE_DISK_FAILED", pathError.Err.Error())
	default:
		refuse(w, http.StatusServiceUnavailable, "NODE_FAILED", err.Error())
	}
}
