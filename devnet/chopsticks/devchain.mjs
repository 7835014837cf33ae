// SPDX-License-Identifier: Apache-2.0
// Runs a development chain in Chopsticks.
//
// Usage: node devchain.mjs MODULES '{"wasm","preset","slotMs","authoring","host","port","reportFd"}'
//   MODULES   folder that holds node_modules (installed from the lockfile beside this file)
//   wasm      path of the runtime; its own GenesisBuilder makes the genesis state from `preset`
//   slotMs    length of an Aura slot on the chain
//   authoring true: a block in each slot; false: only when dev_newBlock asks for one
//   reportFd  one line of JSON is written there when the chain serves: {"port", "genesisHash"}
//
// It ends when its standard input closes, so it never outlives the process that started it.

import fs from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'

const options = JSON.parse(process.argv[3])
const require = createRequire(path.join(process.argv[2], 'package.json'))
const core = require('@acala-network/chopsticks-core')
const { handler } = require('@acala-network/chopsticks/rpc/index')
const { createServer } = require('@acala-network/chopsticks/server')
const { compactAddLength, compactStripLength, hexToU8a, stringToU8a, u8aConcat, u8aToHex, u8aToString } = require('@polkadot/util')
const { blake2AsHex } = require('@polkadot/util-crypto')

const EMPTY_TRIE_ROOT = '0x03170a2e7597b7b7e3d84c05391d139a62b157e78786d8c082f29dcf4c111314'
const CATCH_UP_BLOCKS_MAX = 20
const ZERO_HASH = `0x${'00'.repeat(32)}`

/** Calls the runtime on an empty state. Returns the result's bytes and the storage it wrote. */
async function callOnNothing(wasm, method, argument) {
  const response = await core.runTask(
    {
      wasm,
      calls: [[method, [u8aToHex(argument)]]],
      mockSignatureHost: false,
      allowUnresolvedImports: false,
      runtimeLogLevel: 0,
    },
    { ...core.emptyTaskHandler, getStorage: async () => undefined, getNextKey: async () => undefined },
  )
  if ('Error' in response) throw new Error(`${method}: ${response.Error}`)
  return { result: hexToU8a(response.Call.result), storageDiff: response.Call.storageDiff }
}

/** The runtime's configuration under a preset's name, or its defaults (null). */
async function preset(wasm, name) {
  const id = name === null ? new Uint8Array([0]) : u8aConcat([1], compactAddLength(stringToU8a(name)))
  const { result } = await callOnNothing(wasm, 'GenesisBuilder_get_preset', id)
  if (result[0] !== 1) throw new Error(`the runtime has no genesis preset ${name}`)
  return JSON.parse(u8aToString(compactStripLength(result.subarray(1))[1]))
}

function merge(target, patch) {
  for (const [key, value] of Object.entries(patch)) {
    const both = [value, target[key]].every((x) => x && typeof x === 'object' && !Array.isArray(x))
    target[key] = both ? merge(target[key], value) : value
  }
  return target
}

/** The raw chain spec, as a node would build it from the same preset. */
async function rawSpec(wasm) {
  const config = merge(await preset(wasm, null), await preset(wasm, options.preset))
  config.devnet.slotMs = options.slotMs
  const argument = compactAddLength(stringToU8a(JSON.stringify(config)))
  const { result, storageDiff } = await callOnNothing(wasm, 'GenesisBuilder_build_state', argument)
  if (result[0] !== 0) {
    throw new Error(`the runtime refused its genesis: ${u8aToString(compactStripLength(result.subarray(1))[1])}`)
  }
  const top = Object.fromEntries(storageDiff.filter(([, value]) => value !== null))
  top['0x3a636f6465'] = wasm // :code
  const sorted = Object.fromEntries(Object.entries(top).sort(([a], [b]) => (a < b ? -1 : 1)))
  return {
    id: 'dcnode_devnet',
    name: 'DCNode devnet',
    properties: { ss58Format: 42, tokenDecimals: 12, tokenSymbol: 'UNIT' },
    genesis: { raw: { top: sorted } },
  }
}

/** Chopsticks gives every genesis block the hash 0x4545…; this one has the hash a node computes. */
class Genesis extends core.GenesisProvider {
  #hash
  #spec

  constructor(spec) {
    super(spec)
    this.#spec = spec
  }

  async prepare() {
    const header = await this.getHeader()
    const encoded = u8aConcat(header.parentHash, [0], header.stateRoot, header.extrinsicsRoot, [0])
    this.#hash = blake2AsHex(encoded, 256)
    const send = this.send
    this.send = async (method, params, cacheable) => {
      if (method === 'chain_getBlockHash' && params?.[0]) return null
      if (method === 'system_chain') return this.#spec.name
      return send(method, params, cacheable)
    }
    const known = this.getHeader
    this.getHeader = async (hash) => (hash && hash !== this.#hash ? null : known())
    return this
  }

  get blockHash() {
    return this.#hash
  }

  getHeader = async () => ({
    number: '0x0',
    parentHash: ZERO_HASH,
    stateRoot: await core.calculateStateRoot(Object.entries(this.#spec.genesis.raw.top), 1),
    extrinsicsRoot: EMPTY_TRIE_ROOT,
    digest: { logs: [] },
  })
}

/** Chopsticks asks for the slot's length without giving the runtime its storage, where it is kept. */
function tellSlotDuration(wasm) {
  core.getAuraSlotDuration.cache.set(wasm, Promise.resolve(options.slotMs))
}

/** Builds a block in each slot of the wall clock, and those that a busy machine left out (a few at a time). */
async function author(chain) {
  while (true) {
    await new Promise((wake) => setTimeout(wake, options.slotMs - (Date.now() % options.slotMs)))
    const behind = (Date.now() - Number(await core.getCurrentTimestamp(chain.head))) / options.slotMs
    for (let blocks = Math.min(Math.max(Math.floor(behind), 1), CATCH_UP_BLOCKS_MAX); blocks > 0; blocks--) {
      await chain.newBlock()
    }
  }
}

async function main() {
  const wasm = u8aToHex(fs.readFileSync(options.wasm))
  const genesis = await new Genesis(await rawSpec(wasm)).prepare()
  tellSlotDuration(wasm)
  const chain = await core.setup({
    genesis,
    buildBlockMode: core.BuildBlockMode.Manual,
    // Chopsticks answers with the genesis block for any block it has forgotten.
    maxMemoryBlockCount: Number.MAX_SAFE_INTEGER,
  })
  // A runtime upgrade brings another wasm, about which Chopsticks asks again.
  chain.headState.subscribeHead(async (head) => tellSlotDuration(await head.wasm))
  const server = await createServer(handler({ chain }), options.port, options.host)
  fs.writeSync(options.reportFd, `${JSON.stringify({ port: server.port, genesisHash: genesis.blockHash })}\n`)
  fs.closeSync(options.reportFd)
  if (options.authoring) await author(chain)
}

process.stdin.on('end', () => process.exit(0))
process.stdin.on('error', () => process.exit(0))
process.stdin.resume()
main().catch((error) => {
  process.stderr.write(`${error?.stack ?? error}\n`)
  process.exit(1)
})
