package main

import (
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"handover"
	"handover/sgx"
)

// The release builder puts another file in the place of this one, which accepts nobody.
//
//go:embed node_policy.json
var policyJSON []byte

// policy is what is measured into the image beside the code: whom the node trusts, and which version it is.
type policy struct {
	Version            string   `json:"version"`
	NetworkKeys        []string `json:"network_keys"`
	Threshold          int      `json:"threshold"`
	GenesisHash        string   `json:"genesis_hash"`
	UpgraderIDs        []string `json:"upgrader_ids"`
	Handover           string   `json:"handover"`
	Features           []string `json:"features"`
	FormatTag          string   `json:"format_tag"`
	UnsafeSimulatedTEE bool     `json:"unsafe_simulated_tee"`

	handover handover.Policy
}

func loadPolicy() (policy, error) {
	var p policy
	if err := json.Unmarshal(policyJSON, &p); err != nil {
		return p, fmt.Errorf("the measured policy: %w", err)
	}
	keys, err := handover.ParseNetworkKeys(p.Threshold, p.NetworkKeys...)
	if err != nil {
		return p, err
	}
	genesis, err := hex.DecodeString(strings.TrimPrefix(p.GenesisHash, "0x"))
	if err != nil || len(genesis) != 32 {
		return p, fmt.Errorf("the measured policy: genesis_hash is not 32 bytes in hex")
	}
	p.handover = handover.Policy{Genesis: [32]byte(genesis), Network: keys}
	if p.UpgraderIDs != nil {
		p.handover.Vaults = []sgx.EnclaveID{}
	}
	for _, text := range p.UpgraderIDs {
		id, err := sgx.ParseEnclaveID(text)
		if err != nil {
			return p, err
		}
		p.handover.Vaults = append(p.handover.Vaults, id)
	}
	return p, nil
}

func (p policy) has(feature string) bool { return slices.Contains(p.Features, feature) }
