// Package trust says who may tell a device what to do, and how a device proves
// who it is.
//
// Everything that is signed travels in a DSSE envelope (see Sign and Open): what
// is verified are the bytes that came, and only afterwards are they parsed.
// Trust begins with a Root, metadata in versions: the first is pinned when a
// device joins, each later one is signed by its predecessor's keys and by its
// own. The root signs a Delegation for each workspace, which names the keys that
// sign desired states there. Pinned is what a device holds of both; it moves
// forward only, so that neither an old root nor an old delegation comes back.
//
// The lists of keys in a delegation replace those of the one before. From the
// moment that a device has applied a newer delegation, nothing that an older key
// signs verifies, not even a state that was accepted before: whoever keeps a
// verified state keeps it as verified, and does not ask again whether it is.
//
// The delegation also names the keys that sign the workspace's container images. What
// they sign is a statement about the digest of an image's manifest (see SignImage), in
// the form that Sigstore's cosign verifies; they sign nothing else that a device reads.
//
// Hub keys are Ed25519, device keys ECDSA P-256, so that a TPM can hold them, and keys of
// images too, since that is what tools for container images expect; a
// signing key is a crypto.Signer and need not be in memory.
//
// The package knows neither network nor disk, and nothing of what is signed.
package trust
