// Command peer is one side of a handover for the project's own trials: it holds a key set, or asks for one, in whatever
// TEE it is started, and says in lines of JSON what came of it.
//
//	peer hold [-listen 127.0.0.1:0]     serve the key set over v2 and v1; says the address
//	peer ask URL                        ask once over v2; says the key set's id, or the code of the refusal
//	peer ask1 URL                       the same over v1
//	peer bench URL ROUNDS FOLDER ECHO   ask ROUNDS times, sealing in FOLDER, and time the parts; ECHO is another "hold"
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"handover"
	"handover/sgx"
	"handover/tee"
)

const patience = 20 * time.Second

func main() {
	if err := run(); err != nil {
		say(map[string]any{"code": handover.CodeOf(err), "error": err.Error()})
		os.Exit(1)
	}
}

func say(facts map[string]any) {
	line, _ := json.Marshal(facts)
	fmt.Println(string(line))
}

func run() error {
	network := flag.String("network", "", "the network's key")
	genesis := flag.String("genesis", strings.Repeat("11", 32), "genesis hash")
	signatures := flag.String("signatures", "", "network signatures over this enclave's id, multibase, separated by commas")
	vaults := flag.String("vaults", "", "enclave ids of accepted vaults, separated by commas; empty: any signed one")
	keysHex := flag.String("keys", "", "the key set to hold")
	wanted := flag.String("wanted", "", "the key set to ask for")
	listen := flag.String("listen", "127.0.0.1:0", "where to serve")
	flag.Parse()
	node, err := party(*network, *genesis, *signatures, *vaults)
	if err != nil {
		return err
	}
	switch flag.Arg(0) {
	case "hold":
		return hold(node, *listen, *keysHex)
	case "ask", "ask1":
		return ask(node, flag.Arg(0), flag.Arg(1), *wanted)
	case "bench":
		rounds, err := strconv.Atoi(flag.Arg(2))
		if err != nil {
			return err
		}
		return bench(node, flag.Arg(1), rounds, flag.Arg(3), flag.Arg(4))
	}
	return fmt.Errorf("unknown command %q", flag.Arg(0))
}

func party(network, genesis, signatures, vaults string) (handover.Node, error) {
	var node handover.Node
	var err error
	if node.TEE, err = tee.Open(); err != nil {
		return node, err
	}
	if node.Policy.Network, err = handover.ParseNetworkKeys(1, network); err != nil {
		return node, err
	}
	if _, err = hex.Decode(node.Policy.Genesis[:], []byte(genesis)); err != nil {
		return node, err
	}
	for _, text := range strings.FieldsFunc(vaults, isComma) {
		id, err := sgx.ParseEnclaveID(text)
		if err != nil {
			return node, err
		}
		node.Policy.Vaults = append(node.Policy.Vaults, id)
	}
	node.NetworkSignatures, err = handover.DecodeSignatures(strings.ReplaceAll(signatures, ",", " "))
	return node, err
}

func isComma(r rune) bool { return r == ',' }

func hold(node handover.Node, listen, keysHex string) error {
	raw, err := hex.DecodeString(keysHex)
	if err != nil {
		return err
	}
	keys, err := handover.NewKeySet(raw)
	if err != nil {
		return err
	}
	v2, err := handover.NewHolder(node, keys.Clone)
	if err != nil {
		return err
	}
	v1, err := handover.NewHolderV1(node, keys.Clone)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/v2/", v2)
	mux.Handle("/teerandom", v1)
	mux.Handle("/secret", v1)
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { // what a round trip costs, for bench
		body, _ := io.ReadAll(io.LimitReader(r.Body, 2*messageBytes))
		w.Write(body)
	})
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	say(map[string]any{"url": "http://" + listener.Addr().String()})
	return handover.NewServer(mux).Serve(context.Background(), listener)
}

func ask(node handover.Node, how, url, wanted string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	seal := func(context.Context, *handover.KeySet) (bool, error) { return true, nil }
	var keys *handover.KeySet
	var err error
	if how == "ask1" {
		keys, err = node.RequestKeysV1(ctx, url, seal)
	} else {
		keys, err = node.RequestKeys(ctx, url, wanted, seal)
	}
	if err != nil {
		return err
	}
	say(map[string]any{"key_set_id": keys.ID()})
	keys.Wipe()
	return nil
}
