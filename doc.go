// Package atelier holds the nouns that every part of Atelier shares: workspaces,
// models, versions, variants, devices, deployments, modules, endpoints, the
// desired and the reported state, conditions with their reasons, and typed errors.
//
// The package promises to depend on the standard library only, to start nothing
// and to touch neither network nor disk: it can be imported from a 10 MB agent
// as well as from the hub. It knows nothing of HTTP, MQTT or storage.
package atelier
