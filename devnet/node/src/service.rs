// SPDX-License-Identifier: Apache-2.0
//! The node's parts and how they are put together.

use std::{sync::Arc, time::Duration};

use sc_client_api::BlockBackend;
use sc_consensus_aura::{ImportQueueParams, SlotProportion, StartAuraParams};
use sc_consensus_grandpa::{FinalityProofProvider, SharedVoterState};
use sc_network::{Litep2pNetworkBackend, NetworkBackend};
use sc_service::{error::Error as ServiceError, Configuration, TaskManager, WarpSyncConfig};
use sc_transaction_pool_api::OffchainTransactionPoolFactory;
use sp_consensus_aura::{
	inherents::InherentDataProvider as SlotInherent,
	sr25519::{AuthorityId as AuraId, AuthorityPair as AuraPair},
	SlotDuration,
};
use sp_core::H256;
use sp_timestamp::InherentDataProvider as TimestampInherent;

use crate::{
	rpc,
	runtime_api::{Block, RuntimeApi},
};

pub type FullClient =
	sc_service::TFullClient<Block, RuntimeApi, sc_executor::WasmExecutor<sp_io::SubstrateHostFunctions>>;
pub type FullBackend = sc_service::TFullBackend<Block>;
pub type FullPool = sc_transaction_pool::TransactionPoolHandle<Block, FullClient>;
type SelectChain = sc_consensus::LongestChain<FullBackend, Block>;
type Network = Litep2pNetworkBackend;

/// As on the networks this node stands for: justifications are kept every so many blocks.
const JUSTIFICATION_PERIOD: u32 = 512;
/// Votes are gossiped three times a second elsewhere; blocks may be short here.
const GOSSIP: Duration = Duration::from_millis(100);

fn inherents(slot_duration: SlotDuration) -> (SlotInherent, TimestampInherent) {
	let timestamp = TimestampInherent::from_system_time();
	(SlotInherent::from_timestamp_and_slot_duration(*timestamp, slot_duration), timestamp)
}

/// Starts all services of a node; they run until the returned task manager is dropped.
pub fn start(config: Configuration) -> Result<TaskManager, ServiceError> {
	let executor = sc_service::new_wasm_executor::<sp_io::SubstrateHostFunctions>(&config.executor);
	let (client, backend, keystore, mut tasks) =
		sc_service::new_full_parts::<Block, RuntimeApi, _>(&config, None, executor)?;
	let client = Arc::new(client);
	let select_chain: SelectChain = sc_consensus::LongestChain::new(backend.clone());
	let pool: Arc<FullPool> = Arc::from(
		sc_transaction_pool::Builder::new(
			tasks.spawn_essential_handle(),
			client.clone(),
			config.role.is_authority().into(),
		)
		.with_options(config.transaction_pool.clone())
		.with_prometheus(config.prometheus_registry())
		.build(),
	);

	let (block_import, grandpa_link) =
		sc_consensus_grandpa::block_import(client.clone(), JUSTIFICATION_PERIOD, &client, select_chain.clone(), None)?;
	let slot_duration = sc_consensus_aura::slot_duration::<AuraId, _, _>(&*client)?;
	let import_queue = sc_consensus_aura::import_queue::<AuraPair, _, _, _, _, _>(ImportQueueParams {
		block_import: block_import.clone(),
		justification_import: Some(Box::new(block_import.clone())),
		client: client.clone(),
		create_inherent_data_providers: move |_, ()| async move { Ok(inherents(slot_duration)) },
		spawner: &tasks.spawn_essential_handle(),
		registry: config.prometheus_registry(),
		check_for_equivocation: Default::default(),
		telemetry: None,
		compatibility_mode: Default::default(),
	})?;

	let mut net_config = sc_network::config::FullNetworkConfiguration::<Block, H256, Network>::new(
		&config.network,
		config.prometheus_registry().cloned(),
	);
	let metrics = <Network as NetworkBackend<Block, H256>>::register_notification_metrics(config.prometheus_registry());
	let genesis = client.block_hash(0)?.ok_or_else(|| ServiceError::Other("no genesis block".into()))?;
	let protocol_name = sc_consensus_grandpa::protocol_standard_name(&genesis, &config.chain_spec);
	let (grandpa_protocol, notification_service) = sc_consensus_grandpa::grandpa_peers_set_config::<Block, Network>(
		protocol_name.clone(),
		metrics.clone(),
		net_config.peer_store_handle(),
	);
	net_config.add_notification_protocol(grandpa_protocol);
	let warp_sync = Arc::new(sc_consensus_grandpa::warp_proof::NetworkProvider::new(
		backend.clone(),
		grandpa_link.shared_authority_set().clone(),
		Vec::default(),
	));
	let (network, system_rpc_tx, tx_handler_controller, sync_service) =
		sc_service::build_network(sc_service::BuildNetworkParams {
			config: &config,
			net_config,
			client: client.clone(),
			transaction_pool: pool.clone(),
			spawn_handle: tasks.spawn_handle(),
			import_queue,
			block_announce_validator_builder: None,
			warp_sync_config: Some(WarpSyncConfig::WithProvider(warp_sync)),
			block_relay: None,
			metrics,
		})?;

	let role = config.role;
	let force_authoring = config.force_authoring;
	let name = config.network.node_name.clone();
	let grandpa_enabled = !config.disable_grandpa;
	let registry = config.prometheus_registry().cloned();

	let voter_state = SharedVoterState::empty();
	let grandpa_rpc = rpc::GrandpaDeps {
		voter_state: voter_state.clone(),
		authority_set: grandpa_link.shared_authority_set().clone(),
		justifications: grandpa_link.justification_stream(),
		proofs: FinalityProofProvider::new_for_service(
			backend.clone(),
			Some(grandpa_link.shared_authority_set().clone()),
		),
	};
	let (rpc_client, rpc_pool) = (client.clone(), pool.clone());
	sc_service::spawn_tasks(sc_service::SpawnTasksParams {
		network: Arc::new(network.clone()),
		client: client.clone(),
		keystore: keystore.keystore(),
		task_manager: &mut tasks,
		transaction_pool: pool.clone(),
		rpc_builder: Box::new(move |executor| {
			rpc::create(rpc_client.clone(), rpc_pool.clone(), grandpa_rpc.clone(), executor)
				.map_err(|error| ServiceError::Application(error.into()))
		}),
		backend,
		system_rpc_tx,
		tx_handler_controller,
		sync_service: sync_service.clone(),
		config,
		telemetry: None,
	})?;

	if role.is_authority() {
		let proposer_factory = sc_basic_authorship::ProposerFactory::new(
			tasks.spawn_handle(),
			client.clone(),
			pool.clone(),
			registry.as_ref(),
			None,
		);
		let aura = sc_consensus_aura::start_aura::<AuraPair, _, _, _, _, _, _, _, _, _, _>(StartAuraParams {
			slot_duration,
			client,
			select_chain,
			block_import,
			proposer_factory,
			create_inherent_data_providers: move |_, ()| async move { Ok(inherents(slot_duration)) },
			force_authoring,
			backoff_authoring_blocks: Option::<()>::None,
			keystore: keystore.keystore(),
			sync_oracle: sync_service.clone(),
			justification_sync_link: sync_service.clone(),
			block_proposal_slot_portion: SlotProportion::new(2f32 / 3f32),
			max_block_proposal_slot_portion: None,
			telemetry: None,
			compatibility_mode: Default::default(),
		})?;
		tasks.spawn_essential_handle().spawn_blocking("aura", Some("block-authoring"), aura);
	}

	if grandpa_enabled {
		let voter = sc_consensus_grandpa::run_grandpa_voter(sc_consensus_grandpa::GrandpaParams {
			config: sc_consensus_grandpa::Config {
				gossip_duration: GOSSIP,
				justification_generation_period: JUSTIFICATION_PERIOD,
				name: Some(name),
				observer_enabled: false,
				keystore: role.is_authority().then(|| keystore.keystore()),
				local_role: role,
				telemetry: None,
				protocol_name,
			},
			link: grandpa_link,
			network,
			sync: Arc::new(sync_service),
			notification_service,
			voting_rule: sc_consensus_grandpa::VotingRulesBuilder::default().build(),
			prometheus_registry: registry,
			shared_voter_state: voter_state,
			telemetry: None,
			offchain_tx_pool_factory: OffchainTransactionPoolFactory::new(pool),
		})?;
		tasks.spawn_essential_handle().spawn_blocking("grandpa-voter", None, voter);
	}
	Ok(tasks)
}
