//! Verifies what `bench_proofs.py` wrote, by the crates that Substrate itself uses. Prints microseconds as JSON.
//!
//! Argument: a file of JSON with `read_proofs` (name, root, proof, keys) and `justifications` (name, data, set_id,
//! voters), all bytes in hex.
use std::collections::{HashMap, HashSet};
use std::hint::black_box;
use std::time::{Duration, Instant};

use codec::DecodeAll;
use finality_grandpa::{voter_set::VoterSet, Chain};
use serde_json::Value;
use sp_consensus_grandpa::{check_message_signature_with_buffer, AuthorityId, GrandpaJustification};
use sp_core::{ed25519::Public, Blake2Hasher, H256};
use sp_runtime::traits::{BlakeTwo256, Header as _};
use sp_trie::{LayoutV1, StorageProof, TrieDBBuilder, Trie};

type Header = sp_runtime::generic::Header<u32, BlakeTwo256>;

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().expect("hex").trim_start_matches("0x");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("a list").iter()
}

/// Median microseconds of processor time per call, over rounds of about 10 ms for `seconds`.
fn measure(seconds: f64, mut call: impl FnMut()) -> f64 {
    call();
    let begun = Instant::now();
    call();
    let count = (0.01 / begun.elapsed().as_secs_f64().max(1e-7)).max(1.0) as u32;
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut rounds = Vec::new();
    while rounds.is_empty() || Instant::now() < end {
        let begun = processor_time();
        (0..count).for_each(|_| call());
        rounds.push((processor_time() - begun) / f64::from(count) * 1e6);
    }
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

fn processor_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Headers that come with a justification, as `sc-consensus-grandpa` keeps them.
struct Ancestry(HashMap<H256, Header>);

impl Chain<H256, u32> for Ancestry {
    fn ancestry(&self, base: H256, block: H256) -> Result<Vec<H256>, finality_grandpa::Error> {
        let (mut route, mut current) = (Vec::new(), block);
        while current != base {
            current = *self.0.get(&current).ok_or(finality_grandpa::Error::NotDescendent)?.parent_hash();
            route.push(current);
        }
        route.pop();
        Ok(route)
    }
}

/// The checks of `sc_consensus_grandpa::GrandpaJustification::decode_and_verify_finalizes`.
fn verify_justification(data: &[u8], set_id: u64, voters: &VoterSet<AuthorityId>) {
    let found = GrandpaJustification::<Header>::decode_all(&mut &*data).expect("a justification");
    let headers = found.votes_ancestries.iter().map(|header| (header.hash(), header.clone())).collect();
    let ancestry = Ancestry(headers);
    let valid = finality_grandpa::validate_commit(&found.commit, voters, &ancestry).expect("a commit");
    assert!(valid.is_valid());
    let votes = &found.commit.precommits;
    let base = votes.iter().min_by_key(|vote| vote.precommit.target_number).expect("votes").precommit.target_hash;
    let (mut buffer, mut visited) = (Vec::new(), HashSet::new());
    for vote in votes {
        let message = finality_grandpa::Message::Precommit(vote.precommit.clone());
        let (id, signature) = (&vote.id, &vote.signature);
        assert!(check_message_signature_with_buffer(&message, id, signature, found.round, set_id, &mut buffer));
        if vote.precommit.target_hash != base {
            visited.insert(vote.precommit.target_hash);
            visited.extend(ancestry.ancestry(base, vote.precommit.target_hash).expect("ancestry"));
        }
    }
    assert_eq!(visited, ancestry.0.keys().copied().collect());
}

fn verify_read_proof(root: H256, nodes: &[Vec<u8>], keys: &[Vec<u8>]) {
    let database = StorageProof::new(nodes.iter().cloned()).into_memory_db::<Blake2Hasher>();
    let trie = TrieDBBuilder::<LayoutV1<Blake2Hasher>>::new(&database, &root).build();
    for key in keys {
        black_box(trie.get(key).expect("the proof covers the key"));
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let seconds: f64 = arguments[2].parse().expect("seconds per line");
    let given: Value = serde_json::from_str(&std::fs::read_to_string(&arguments[1]).expect("a file")).expect("JSON");
    let mut figures = serde_json::Map::new();
    for one in list(&given["read_proofs"]) {
        let root = H256::from_slice(&bytes(&one["root"]));
        let nodes: Vec<_> = list(&one["proof"]).map(bytes).collect();
        let keys: Vec<_> = list(&one["keys"]).map(bytes).collect();
        let taken = measure(seconds, || verify_read_proof(root, &nodes, &keys));
        figures.insert(one["name"].as_str().expect("a name").into(), taken.into());
    }
    for one in list(&given["justifications"]) {
        let data = bytes(&one["data"]);
        let authority = |pair: &Value| {
            let key: [u8; 32] = bytes(&pair[0]).try_into().expect("a key");
            (AuthorityId::from(Public::from_raw(key)), pair[1].as_u64().expect("a weight"))
        };
        let voters = VoterSet::new(list(&one["voters"]).map(authority)).expect("voters");
        let set_id = one["set_id"].as_u64().expect("a number");
        let taken = measure(seconds, || verify_justification(&data, set_id, &voters));
        figures.insert(one["name"].as_str().expect("a name").into(), taken.into());
    }
    println!("{}", Value::Object(figures));
}
