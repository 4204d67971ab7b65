// Package access decides who may do what, and keeps a record of it.
//
// Every verb on every transport (REST, MQTT, the command line's local mode)
// passes Authority.Authorize before anything is read or changed: one function
// decides and audits, so that no transport can forget it. The package knows
// principals, verbs and objects; it knows neither HTTP nor MQTT.
//
// Audited is each decision on a verb that changes something or hands out a
// secret, and each refusal. Reading is audited only when it is refused: a page
// that refreshes itself would bury what matters. So are the verbs that every
// device does many times a minute (telemetry, content, reports): a synced row for
// each would cost more than the work itself, and what they did can be seen in
// what they wrote. A builder that keeps what it has claimed is like them, and so
// are the pieces of layers that make an image: its push is audited.
package access

import "context"

// PrincipalKind is what sort of caller it is.
type PrincipalKind string

// The kinds of callers.
const (
	User      PrincipalKind = "token"  // somebody with an access token
	Device    PrincipalKind = "device" // a device, by its certificate
	Joiner    PrincipalKind = "joiner" // somebody with a join token
	System    PrincipalKind = "hub"    // the hub itself
	Anonymous PrincipalKind = "anonymous"
)

// Principal is an authenticated caller.
type Principal struct {
	Kind PrincipalKind
	ID   string // of the token or the device
	Name string
	// Workspace is the id of the only workspace that the caller may touch, ""
	// for one that is not bound to one.
	Workspace string
	// Role is what a User may do: Admin everything, Viewer only read, Builder only build environments.
	Role string
}

// Actor is how the principal stands in events and in the audit trail: "token:admin".
func (p Principal) Actor() string {
	name := p.Name
	if name == "" {
		name = p.ID
	}
	if name == "" {
		return string(p.Kind)
	}
	return string(p.Kind) + ":" + name
}

// Verb names an action as "noun.verb": "model.register", "device.list".
type Verb string

// Object is what a verb is about. For the verbs that a device does to itself it
// is the device, also where content or telemetry moves.
type Object struct {
	Workspace string // id; "" for the hub itself
	Kind      string
	ID        string // id or name; "" for the collection
}

type principalKey struct{}

type seenKey struct{}

// WithSeen returns a context that tells seen who the caller is, once WithPrincipal
// says so of a context made from it: whoever logs a request began before that.
func WithSeen(ctx context.Context, seen *Principal) context.Context {
	return context.WithValue(ctx, seenKey{}, seen)
}

// WithPrincipal returns a context that carries the caller.
func WithPrincipal(ctx context.Context, p Principal) context.Context {
	if seen, ok := ctx.Value(seenKey{}).(*Principal); ok {
		*seen = p
	}
	return context.WithValue(ctx, principalKey{}, p)
}

// PrincipalFrom returns the caller; Anonymous where none was set.
func PrincipalFrom(ctx context.Context) Principal {
	if p, ok := ctx.Value(principalKey{}).(Principal); ok {
		return p
	}
	return Principal{Kind: Anonymous}
}
