// polkadot-api: on each finalized block, both values at that block. Prints one line of JSON per block.
import { createClient } from "polkadot-api";
import { getWsProvider } from "polkadot-api/ws";

const client = createClient(getWsProvider(process.argv[2]));
const api = client.getUnsafeApi();
const now = () => Number(process.hrtime.bigint()) / 1e9;
const plain = (value) =>
  JSON.stringify(value, (_, one) => (typeof one === "bigint" ? one.toString() : one?.asText ? one.asText() : one instanceof Uint8Array ? Buffer.from(one).toString() : one));
client.finalizedBlock$.subscribe(async (block) => {
  const [ids, program] = await Promise.all([
    api.query.DcNode.EnclaveIds.getValue({ at: block.hash }),
    api.query.DcNode.DcProgram.getValue({ at: block.hash }),
  ]);
  console.log(JSON.stringify({ number: block.number, release_at: now(), text: plain([ids, program]) }));
});
console.log(JSON.stringify({ ready: true }));
