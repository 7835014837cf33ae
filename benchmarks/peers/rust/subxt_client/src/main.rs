//! subxt: on each finalized block, both values at that block. Prints one line of JSON per block.
use subxt::dynamic::{storage, Value};
use subxt::{OnlineClient, PolkadotConfig};

/// The machine's monotonic clock, seconds; `Instant` does not say its origin.
fn now() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("usage: subxt_client URL")?;
    let api = OnlineClient::<PolkadotConfig>::from_insecure_url(url).await?;
    let mut blocks = api.stream_blocks().await?;
    println!("{}", serde_json::json!({ "ready": true }));
    while let Some(block) = blocks.next().await {
        let block = block?;
        let number = block.number();
        let at = block.at().await?;
        let reads = at.storage();
        let (ids, program) = tokio::try_join!(
            reads.try_fetch(storage::<(), Value>("DcNode", "EnclaveIds"), ()),
            reads.try_fetch(storage::<(), Value>("DcNode", "DcProgram"), ()),
        )?;
        let mut text = String::new();
        for value in [ids, program].into_iter().flatten() {
            value.decode()?;
            text.extend(value.bytes().iter().map(|byte| format!("{byte:02x}")));
        }
        println!("{}", serde_json::json!({ "number": number, "release_at": now(), "text": text }));
    }
    Ok(())
}
