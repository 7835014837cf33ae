// @polkadot/api: on each finalized head, both values at that block. Prints one line of JSON per head.
import { ApiPromise, WsProvider } from "@polkadot/api";

const api = await ApiPromise.create({ provider: new WsProvider(process.argv[2]), noInitWarn: true });
const now = () => Number(process.hrtime.bigint()) / 1e9;
await api.rpc.chain.subscribeFinalizedHeads(async (head) => {
  const at = await api.at(head.hash);
  const [ids, program] = await Promise.all([at.query.dcNode.enclaveIds(), at.query.dcNode.dcProgram()]);
  const text = JSON.stringify([ids.toHuman(), program.toHuman()]);
  console.log(JSON.stringify({ number: head.number.toNumber(), release_at: now(), text }));
});
console.log(JSON.stringify({ ready: true }));
