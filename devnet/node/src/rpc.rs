// SPDX-License-Identifier: Apache-2.0
//! RPC beside what every Substrate node serves: `system_accountNextIndex` and the `grandpa_*` methods.

use std::sync::Arc;

use jsonrpsee::RpcModule;
use sc_consensus_grandpa::{FinalityProofProvider, GrandpaJustificationStream, SharedAuthoritySet, SharedVoterState};
use sc_consensus_grandpa_rpc::{Grandpa, GrandpaApiServer};
use sc_rpc::SubscriptionTaskExecutor;
use substrate_frame_rpc_system::{System, SystemApiServer};

use crate::{
	runtime_api::{Block, Nonce},
	service::{FullBackend, FullClient, FullPool},
};

/// What the methods of GRANDPA answer from.
#[derive(Clone)]
pub struct GrandpaDeps {
	pub voter_state: SharedVoterState,
	pub authority_set: SharedAuthoritySet<sp_core::H256, u32>,
	pub justifications: GrandpaJustificationStream<Block>,
	pub proofs: Arc<FinalityProofProvider<FullBackend, Block>>,
}

/// The extra methods as one module.
pub fn create(
	client: Arc<FullClient>,
	pool: Arc<FullPool>,
	grandpa: GrandpaDeps,
	executor: SubscriptionTaskExecutor,
) -> Result<RpcModule<()>, jsonrpsee::core::RegisterMethodError> {
	let mut module = RpcModule::new(());
	module.merge(SystemApiServer::<_, _, Nonce>::into_rpc(System::new(client, pool)))?;
	let GrandpaDeps { voter_state, authority_set, justifications, proofs } = grandpa;
	module.merge(Grandpa::new(executor, authority_set, voter_state, justifications, proofs).into_rpc())?;
	Ok(module)
}
