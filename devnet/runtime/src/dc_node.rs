// SPDX-License-Identifier: Apache-2.0
//! The pallet `DcNode`: which DCNode enclaves the network has signed, and which version is to run.
//!
//! Storage and calls are those of the DC network's chain as a watcher sees them: same names, same
//! types, same call indices, root only, and no events (a watcher follows storage).

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

		/// Sets the version to run.
		#[pallet::call_index(24)]
		#[pallet::weight(T::DbWeight::get().writes(1))]
		pub fn set_dc_program(
			origin: OriginFor<T>,
			origin_url: DcString,
			mirror_url: DcString,
			enclave_id: DcString,
			version: DcString,
		) -> DispatchResult {
			ensure_root(origin)?;
			DcProgram::<T>::put(DcProgramInfo { origin_url, mirror_url, enclave_id, version });
			Ok(())
		}
	}
}
