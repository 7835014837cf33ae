// Package handover is a DCNode's half of the key handover: it asks the vault for the application keys when a new
// version starts without any, and hands them to the vault when it is asked.
//
// A node needs three things from this package:
//
//   - a [Node]: its TEE, whom it accepts as a vault, and the network's signatures over its own enclave id;
//   - [Node.RequestKeys], which asks until there are keys, has them sealed, and confirms;
//   - a [Holder], an [net/http.Handler] that hands the keys over.
//
// [Store] keeps the keys sealed to the enclave, and [Server] serves a handler so that nobody on the host can starve it.
// [HolderV1] and [Node.RequestKeysV1] speak the older protocol of nodes in the field. Package handover/tee opens the
// TEE, package handover/handovertest has a software CPU for tests.
//
// The protocol is described in docs/protocol.md; this package follows it byte by byte. It depends on the standard
// library only.
package handover

// Version is the version of this module. It follows semantic versioning and is independent of the service's version.
const Version = "1.0.0"
