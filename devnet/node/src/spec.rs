// SPDX-License-Identifier: Apache-2.0
//! Chains this node knows by name, or from a file.

use sc_chain_spec::{GenesisConfigBuilderRuntimeCaller, NoExtension};
use sc_service::{ChainType, Properties};
use sp_genesis_builder::{DEV_RUNTIME_PRESET, LOCAL_TESTNET_RUNTIME_PRESET};

pub type ChainSpec = sc_service::GenericChainSpec<NoExtension>;

const BASE: &[u8] = include_bytes!("../../runtime/wasm/dcnode_runtime.compact.compressed.wasm");
const MOVED: &[u8] = include_bytes!("../../runtime/wasm/dcnode_runtime_moved.compact.compressed.wasm");

/// `dev` (one authority) or `local` (two), each with `-moved` for the second runtime and with
/// `:<milliseconds>` for another slot than the preset's: `dev`, `local:1000`, `dev-moved:500`.
/// Anything else is the path of a chain spec.
pub fn load(id: &str) -> Result<ChainSpec, String> {
	let (name, slot_ms) = match id.split_once(':') {
		Some((name, slot)) => (name, Some(slot.parse::<u64>().map_err(|e| format!("slot length {slot}: {e}"))?)),
		None => (id, None),
	};
	let (name, wasm) = match name.strip_suffix("-moved") {
		Some(name) => (name, MOVED),
		None => (name, BASE),
	};
	match name {
		"dev" => named(wasm, "DCNode devnet", "dcnode_devnet", ChainType::Development, DEV_RUNTIME_PRESET, slot_ms),
		"" | "local" => {
			named(wasm, "DCNode local", "dcnode_local", ChainType::Local, LOCAL_TESTNET_RUNTIME_PRESET, slot_ms)
		},
		_ => ChainSpec::from_json_file(id.into()),
	}
}

fn named(
	wasm: &[u8],
	name: &str,
	id: &str,
	chain_type: ChainType,
	preset: &str,
	slot_ms: Option<u64>,
) -> Result<ChainSpec, String> {
	let runtime = GenesisConfigBuilderRuntimeCaller::<sp_io::SubstrateHostFunctions>::new(wasm);
	let mut genesis = runtime.get_named_preset(Some(&preset.to_string()))?;
	if let Some(slot_ms) = slot_ms {
		genesis["devnet"]["slotMs"] = slot_ms.into();
	}
	let mut properties = Properties::new();
	properties.insert("ss58Format".into(), 42.into());
	properties.insert("tokenDecimals".into(), 12.into());
	properties.insert("tokenSymbol".into(), "UNIT".into());
	Ok(ChainSpec::builder(wasm, None)
		.with_name(name)
		.with_id(id)
		.with_chain_type(chain_type)
		.with_properties(properties)
		.with_genesis_config_patch(genesis)
		.build())
}
