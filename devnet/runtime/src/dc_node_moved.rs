// SPDX-License-Identifier: Apache-2.0
//! The pallet `DcNode`: which DCNode enclaves the network has signed, and which version is to run.
//!
//! This is the build that a live runtime upgrade leads to: the program has a fifth field, as the
//! network's newer client reads it, and what is stored with four fields is migrated. Everything else
//! is as in `dc_node.rs`. (FRAME's macros do not see cfg attributes, hence a file of its own.)

use alloc::{collections::BTreeSet, vec::Vec};
use frame_support::pallet_prelude::*;
use frame_system::pallet_prelude::*;

pub use pallet::*;

/// Text or bytes as the chain keeps them: unbounded.
pub type DcString = Vec<u8>;

/// The version of DCNode that the network wants to run.
#[derive(Clone, Encode, Decode, Default, Eq, PartialEq, RuntimeDebug, TypeInfo)]
pub struct DcProgramInfo {
	/// Where the release lies: an image reference or a URL.
	pub origin_url: DcString,
	/// A second place for the same release.
	pub mirror_url: DcString,
	/// MRENCLAVE of the release, as ASCII hex.
	pub enclave_id: DcString,
	/// The version a person reads.
	pub version: DcString,
	/// IPFS CIDs of the release.
	pub mirr_cids: Vec<DcString>,
}

#[frame_support::pallet]
pub mod pallet {
	use super::*;

	#[pallet::config]
	pub trait Config: frame_system::Config {}

	#[pallet::pallet]
	#[pallet::without_storage_info]
	pub struct Pallet<T>(_);

	/// Signed enclave ids: height at which it was added, enclave id (ASCII hex), network signature
	/// (ASCII multibase base32).
	#[pallet::storage]
	pub type EnclaveIds<T: Config> = StorageValue<_, BTreeSet<(BlockNumberFor<T>, DcString, DcString)>>;

	/// The version to run.
	#[pallet::storage]
	pub type DcProgram<T: Config> = StorageValue<_, DcProgramInfo>;

	#[pallet::hooks]
	impl<T: Config> Hooks<BlockNumberFor<T>> for Pallet<T> {
		/// Gives a four-field program its fifth field, empty. Doing it twice changes nothing.
		fn on_runtime_upgrade() -> Weight {
			migration::append_mirr_cids::<T>();
			T::DbWeight::get().reads_writes(1, 1)
		}
	}

	#[pallet::call]
	impl<T: Config> Pallet<T> {
		/// Adds an enclave id with the network's signature, at the height of this block.
		#[pallet::call_index(22)]
		#[pallet::weight(T::DbWeight::get().reads_writes(1, 1))]
		pub fn set_enclave_id(origin: OriginFor<T>, enclave_id: DcString, signature: DcString) -> DispatchResult {
			ensure_root(origin)?;
			let added = frame_system::Pallet::<T>::block_number();
			EnclaveIds::<T>::mutate(|ids| ids.get_or_insert_with(BTreeSet::new).insert((added, enclave_id, signature)));
			Ok(())
		}

		/// Removes every entry of an enclave id.
		#[pallet::call_index(23)]
		#[pallet::weight(T::DbWeight::get().reads_writes(1, 1))]
		pub fn remove_enclave_id(origin: OriginFor<T>, enclave_id: DcString) -> DispatchResult {
			ensure_root(origin)?;
			EnclaveIds::<T>::mutate(|ids| {
				if let Some(ids) = ids {
					ids.retain(|(_, id, _)| *id != enclave_id);
				}
			});
			Ok(())
		}

		/// Sets the version to run, with the CIDs under which IPFS has it.
		#[pallet::call_index(24)]
		#[pallet::weight(T::DbWeight::get().writes(1))]
		pub fn set_dc_program(
			origin: OriginFor<T>,
			origin_url: DcString,
			mirror_url: DcString,
			enclave_id: DcString,
			version: DcString,
			mirr_cids: Vec<DcString>,
		) -> DispatchResult {
			ensure_root(origin)?;
			DcProgram::<T>::put(DcProgramInfo { origin_url, mirror_url, enclave_id, version, mirr_cids });
			Ok(())
		}
	}
}

/// From four fields to five.
mod migration {
	use super::*;

	#[derive(Decode)]
	struct FourFields {
		origin_url: DcString,
		mirror_url: DcString,
		enclave_id: DcString,
		version: DcString,
	}

	/// Decodes what is stored strictly as four fields and writes five. A value that is not exactly
	/// four fields (it has five already) is left as it is.
	pub fn append_mirr_cids<T: Config>() {
		let key = DcProgram::<T>::hashed_key();
		let Some(bytes) = sp_io::storage::get(&key) else { return };
		let mut input = &bytes[..];
		let Ok(old) = FourFields::decode(&mut input) else { return };
		if !input.is_empty() {
			return;
		}
		DcProgram::<T>::put(DcProgramInfo {
			origin_url: old.origin_url,
			mirror_url: old.mirror_url,
			enclave_id: old.enclave_id,
			version: old.version,
			mirr_cids: Vec::new(),
		});
	}
}
