package handover_test

import (
	"context"
	"fmt"
	"log"
	"net/http/httptest"
	"os"

	"handover"
	"handover/handovertest"
	"handover/sgx"
)

// A node's old version hands its keys to the vault, and its new version asks the vault for them. All three run on a
// software CPU here; in an enclave, tee.Open of handover/tee takes its place.
func Example() {
	cpu, network := handovertest.NewCPU(), handovertest.NewNetwork()
	party := func(name string, vaults ...sgx.EnclaveID) handover.Node {
		enclave := cpu.Enclave(name)
		return handover.Node{
			TEE:               enclave,
			Policy:            handover.Policy{Network: network.Keys(), Vaults: vaults},
			NetworkSignatures: [][]byte{network.Sign(enclave.ID())},
		}
	}
	vaultID, oldID := cpu.Enclave("vault").ID(), cpu.Enclave("node 1.0.0").ID()

	// The old version serves its keys.
	keys, err := handover.NewKeySet([]byte("application keys"))
	if err != nil {
		log.Fatal(err)
	}
	old, err := handover.NewHolder(party("node 1.0.0", vaultID), keys.Clone)
	if err != nil {
		log.Fatal(err)
	}
	oldServer := httptest.NewServer(old)
	defer oldServer.Close()

	// The vault collects them and holds them.
	var held *handover.KeySet
	_, err = party("vault", oldID).RequestKeys(context.Background(), oldServer.URL, "",
		func(_ context.Context, keys *handover.KeySet) (bool, error) {
			held = keys.Clone()
			return false, nil
		})
	if err != nil {
		log.Fatal(err)
	}
	vault, err := handover.NewHolder(party("vault"), func() *handover.KeySet { return held.Clone() })
	if err != nil {
		log.Fatal(err)
	}
	vaultServer := httptest.NewServer(vault)
	defer vaultServer.Close()

	// The new version asks for them and seals them in its data folder.
	folder, err := os.MkdirTemp("", "data")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(folder)
	next := party("node 1.1.0", vaultID)
	store, err := handover.OpenStore(folder, next.TEE, true)
	if err != nil {
		log.Fatal(err)
	}
	received, err := next.RequestKeys(context.Background(), vaultServer.URL, "", store.Seal)
	if err != nil {
		log.Fatal(err)
	}
	defer received.Wipe()
	fmt.Println(string(received.Bytes()))
	by, confirmed := vault.CollectedBy()
	fmt.Println(confirmed, by == cpu.Enclave("node 1.1.0").ID())
	// Output:
	// application keys
	// true true
}

// A program decides by the code of an error, and asks again where it is transient.
func ExampleCodeOf() {
	_, err := handover.NewKeySet(nil)
	fmt.Println(handover.CodeOf(err), handover.IsTransient(err))
	// Output: KEY_SET_SIZE_INVALID false
}

// A store keeps the keys of one data folder. The first version makes them; a restarted one loads them.
func ExampleStore() {
	folder, err := os.MkdirTemp("", "data")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(folder)
	enclave := handovertest.NewCPU().Enclave("node 1.0.0")
	store, err := handover.OpenStore(folder, enclave, true) // true: for tests only, in a simulated TEE
	if err != nil {
		log.Fatal(err)
	}
	keys, err := handover.NewKeySet([]byte("application keys"))
	if err != nil {
		log.Fatal(err)
	}
	if err := store.Create(keys); err != nil {
		log.Fatal(err)
	}
	if _, err := store.Adopt(keys); err != nil { // writes the canary and the marker
		log.Fatal(err)
	}
	loaded, err := store.Load()
	if err != nil {
		log.Fatal(err)
	}
	canary, err := store.Adopt(loaded)
	fmt.Println(loaded.Equal(keys), canary, err)
	fmt.Println(handover.CodeOf(store.Create(keys)))
	// Output:
	// true true <nil>
	// KEY_SET_EXISTS
}
