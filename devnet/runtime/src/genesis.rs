// SPDX-License-Identifier: Apache-2.0
//! Genesis presets: one authority (`development`), two (`local_testnet`).

use alloc::{vec, vec::Vec};
use serde_json::{json, Value};
use sp_genesis_builder::{PresetId, DEV_RUNTIME_PRESET, LOCAL_TESTNET_RUNTIME_PRESET};
use sp_keyring::{Ed25519Keyring, Sr25519Keyring};

use crate::{AccountId, DEFAULT_SLOT_MS, UNIT};

/// The well-known development accounts hold tokens, //Alice holds sudo, and the given accounts are
/// the authorities of Aura (sr25519) and GRANDPA (ed25519, weight 1 each).
fn preset(authorities: &[(Sr25519Keyring, Ed25519Keyring)]) -> Value {
	let balances: Vec<(AccountId, u128)> =
		Sr25519Keyring::well_known().map(|key| (key.to_account_id(), 1_000_000 * UNIT)).collect();
	let aura: Vec<sp_consensus_aura::sr25519::AuthorityId> =
		authorities.iter().map(|(aura, _)| aura.public().into()).collect();
	let grandpa: Vec<(sp_consensus_grandpa::AuthorityId, u64)> =
		authorities.iter().map(|(_, grandpa)| (grandpa.public().into(), 1)).collect();
	json!({
		"balances": { "balances": balances },
		"aura": { "authorities": aura },
		"grandpa": { "authorities": grandpa },
		"sudo": { "key": Some(Sr25519Keyring::Alice.to_account_id()) },
		"devnet": { "slotMs": DEFAULT_SLOT_MS },
	})
}

/// The preset of that name, as JSON.
pub fn get(id: &PresetId) -> Option<Vec<u8>> {
	let alice = (Sr25519Keyring::Alice, Ed25519Keyring::Alice);
	let bob = (Sr25519Keyring::Bob, Ed25519Keyring::Bob);
	let patch = match id.as_ref() {
		DEV_RUNTIME_PRESET => preset(&[alice]),
		LOCAL_TESTNET_RUNTIME_PRESET => preset(&[alice, bob]),
		_ => return None,
	};
	serde_json::to_vec(&patch).ok()
}

/// The names `get` knows.
pub fn names() -> Vec<PresetId> {
	vec![PresetId::from(DEV_RUNTIME_PRESET), PresetId::from(LOCAL_TESTNET_RUNTIME_PRESET)]
}
