package main

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"handover"
	"handover/sgx"
)

// errRestart ends a node of handover v1 after it sealed what it received; whoever supervises it starts it again.
var errRestart = errors.New("keys sealed; restarting, as nodes of handover v1 do")

// node is one run on one data folder. It owes its data, until it hears commit: no new application keys and no
// irreversible change of their format.
type node struct {
	policy   policy
	id       sgx.EnclaveID
	party    handover.Node
	sealed   *handover.Store
	data     string
	upgrader string

	mu      sync.Mutex
	status  string
	objects *objectStore
	keys    *handover.KeySet
	failure error
}

func newNode(p policy, tee handover.TEE, signatures [][]byte, data, upgrader string) (*node, error) {
	own, err := handover.SelfReport(tee)
	if err != nil {
		return nil, err
	}
	sealed, err := handover.OpenStore(data, tee, p.UnsafeSimulatedTEE)
	if err != nil {
		return nil, err
	}
	if _, err := url.ParseRequestURI(upgrader); err != nil {
		return nil, errors.New("--upgrader is not a URL")
	}
	return &node{
		policy: p, id: own.MRENCLAVE, sealed: sealed, data: data, upgrader: upgrader, status: "starting",
		party: handover.Node{TEE: tee, Policy: p.handover, NetworkSignatures: signatures},
	}, os.MkdirAll(filepath.Join(data, "commits"), 0o700)
}

// bringUp goes from an empty process to serving. What stands in the way is told by the node's health.
func (n *node) bringUp(ctx context.Context, firstInstall bool) error {
	keys, err := n.sealed.Load()
	switch {
	case err != nil:
	case keys != nil:
		_, err = n.adopt(keys)
	case firstInstall:
		keys, err = n.firstInstall()
	default:
		keys, err = n.askForKeys(ctx)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		if !errors.Is(err, errRestart) && ctx.Err() == nil {
			n.status, n.failure = "failed", err
		}
		return err
	}
	n.keys, n.status = keys, "serving"
	slog.Info("serving", "enclave", n.id, "version", n.policy.Version, "key set", keys.ID())
	return nil
}

// firstInstall makes the keys of new data.
func (n *node) firstInstall() (*handover.KeySet, error) {
	objects, err := os.ReadDir(filepath.Join(n.data, "objects"))
	_, noCanary := os.Stat(filepath.Join(n.data, "canary.json"))
	if len(objects) > 0 || noCanary == nil || err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, &handover.Error{
			Code: "NODE_FIRST_INSTALL_REFUSED", What: "no keys were made", Why: "the data folder is not empty",
			Kind: handover.Rejected,
		}
	}
	raw := newKeys()
	defer clear(raw)
	keys, err := handover.NewKeySet(raw)
	if err != nil {
		return nil, err
	}
	if err := n.sealed.Create(keys); err != nil {
		return nil, err
	}
	_, err = n.adopt(keys)
	return keys, err
}

func (n *node) askForKeys(ctx context.Context) (*handover.KeySet, error) {
	wanted, err := n.sealed.Marker()
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.status = "waiting_for_keys"
	n.mu.Unlock()
	slog.Info("no key set is sealed to this enclave: asking for it", "enclave", n.id, "upgrader", n.upgrader)
	if n.policy.Handover != "v1" {
		return n.party.RequestKeys(ctx, n.upgrader, wanted, n.receive)
	}
	keys, err := n.party.RequestKeysV1(ctx, n.upgrader, n.receive)
	if err == nil {
		keys.Wipe()
		err = errRestart
	}
	return nil, err
}

// receive seals keys, reads them back, and opens the canary of the old data with them.
func (n *node) receive(_ context.Context, keys *handover.KeySet) (canary bool, err error) {
	if err := n.sealed.Put(keys); err != nil {
		return false, err
	}
	return n.adopt(keys)
}

// adopt opens the data with a copy of the keys. It fails where the canary does not decrypt, and then nothing was touched.
func (n *node) adopt(keys *handover.KeySet) (canary bool, err error) {
	objects, err := openObjects(n.data, keys.Clone().Bytes(), n.policy.FormatTag)
	if err != nil {
		return false, err
	}
	marker, err := n.sealed.Marker()
	if err != nil {
		return false, err
	}
	if objects.isEmpty() && (marker == "" || marker == keys.ID()) {
		if err := objects.writeCanary(n.policy.Version); err != nil {
			return false, err
		}
	}
	if !objects.canarySings() {
		return false, &handover.Error{
			Code: "NODE_CANARY_UNREADABLE", What: "the data were not opened",
			Why: "the canary record does not decrypt in this version", Kind: handover.Invariant,
		}
	}
	n.mu.Lock()
	n.objects = objects
	n.mu.Unlock()
	return true, n.sealed.Mark(keys)
}

func (n *node) state() (string, *objectStore) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status, n.objects
}

// keysFor returns a copy of the keys for a vault, or nil while the node has none.
func (n *node) keysFor() *handover.KeySet {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.keys.Clone()
}
