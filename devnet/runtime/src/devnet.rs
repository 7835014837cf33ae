// SPDX-License-Identifier: Apache-2.0
//! The pallet `Devnet`: what a test wants to choose about a chain and a real chain fixes elsewhere.
//!
//! The length of a slot comes from genesis, so that tests need not wait for six-second blocks, and
//! root may hand GRANDPA over to another set of authorities, so that proofs cross such a change.

use alloc::vec::Vec;
use frame_support::{pallet_prelude::*, traits::Get};
use frame_system::pallet_prelude::*;
use sp_consensus_grandpa::AuthorityId;

pub use pallet::*;

#[frame_support::pallet]
pub mod pallet {
	use super::*;

	#[pallet::config]
	pub trait Config: frame_system::Config + pallet_grandpa::Config {}

	#[pallet::pallet]
	#[pallet::without_storage_info]
	pub struct Pallet<T>(_);

	#[pallet::type_value]
	pub fn DefaultSlotMs() -> u64 {
		crate::DEFAULT_SLOT_MS
	}

	/// Length of an Aura slot in milliseconds, fixed at genesis.
	#[pallet::storage]
	pub type SlotMs<T: Config> = StorageValue<_, u64, ValueQuery, DefaultSlotMs>;

	#[pallet::genesis_config]
	#[derive(frame_support::DefaultNoBound)]
	pub struct GenesisConfig<T: Config> {
		/// Length of an Aura slot in milliseconds; 0 means the default.
		pub slot_ms: u64,
		#[serde(skip)]
		pub _config: PhantomData<T>,
	}

	#[pallet::genesis_build]
	impl<T: Config> BuildGenesisConfig for GenesisConfig<T> {
		fn build(&self) {
			if self.slot_ms != 0 {
				// Timestamp's minimum period is half a slot: an odd length would differ from Aura's.
				assert!(self.slot_ms % 2 == 0, "slotMs must be even");
				SlotMs::<T>::put(self.slot_ms);
			}
		}
	}

	#[pallet::call]
	impl<T: Config> Pallet<T> {
		/// Gives finality to another set of authorities (key and weight), `in_blocks` after this block.
		/// `median_finalized` makes the change a forced one: it is applied by depth and not by finality,
		/// counted from that block.
		#[pallet::call_index(0)]
		#[pallet::weight(T::DbWeight::get().reads_writes(1, 1))]
		pub fn schedule_authorities(
			origin: OriginFor<T>,
			authorities: Vec<(AuthorityId, u64)>,
			in_blocks: BlockNumberFor<T>,
			median_finalized: Option<BlockNumberFor<T>>,
		) -> DispatchResult {
			ensure_root(origin)?;
			pallet_grandpa::Pallet::<T>::schedule_change(authorities, in_blocks, median_finalized)?;
			pallet_grandpa::CurrentSetId::<T>::mutate(|id| *id += 1);
			Ok(())
		}
	}
}

/// Length of a slot, for Aura.
pub struct SlotDuration<T>(PhantomData<T>);
impl<T: Config> Get<u64> for SlotDuration<T> {
	fn get() -> u64 {
		SlotMs::<T>::get()
	}
}

/// Half a slot, for Timestamp.
pub struct MinimumPeriod<T>(PhantomData<T>);
impl<T: Config> Get<u64> for MinimumPeriod<T> {
	fn get() -> u64 {
		SlotMs::<T>::get() / 2
	}
}
