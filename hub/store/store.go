// Package store keeps the hub's metadata: resources, the references between
// them, the event of every change (the outbox), the audit trail and remembered
// answers to repeated requests.
//
// There is one interface, one schema and one conformance suite (storetest), and
// two engines: SQLite (the default: one file, nothing to install) and PostgreSQL.
// A resource is a JSON document with a few indexed columns: every kind has the
// same paging, revisions, uniqueness of names, watches and history, and a new
// kind needs no migration. What is high in volume (metrics, logs) does not
// belong here.
//
// The package knows no kind and decides no permission: hub/access does.
package store

import (
	"context"
	"encoding/json"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Store is the hub's metadata. Its methods are safe for concurrent use.
type Store interface {
	// View runs fn in a read-only transaction that sees one state.
	View(ctx context.Context, fn func(Tx) error) error
	// Update runs fn in a read-write transaction on behalf of by. When fn
	// returns nil and the commit succeeds, the changes are on disk; otherwise
	// none of them happened. Writers run one after another. fn may run more than
	// once and must have no effect outside its Tx; a call of Update within it
	// would wait for itself. Once fn has run, ctx's end no longer ends Update.
	Update(ctx context.Context, by By, fn func(Tx) error) error
	// Changes returns a channel that receives a value some time after each
	// commit that wrote an event; several commits may share a value. The
	// channel closes when ctx ends. Read what is new with Tx.Events.
	Changes(ctx context.Context) <-chan struct{}
	// Close waits for running transactions and closes the store.
	Close() error
}

// By says who changes something, for events and audit.
type By struct {
	Actor   string // such as "token:admin", "device:01j…" or "hub"
	Request string // id of the request, "" for none
}

// Resource is a stored resource of any kind. (Kind, ID) is its key. Where Name
// is not empty it is unique among (Kind, Workspace, Parent).
type Resource struct {
	Kind      string // "model", "version", "device", …
	Workspace string // id; "" for the hub's own resources
	Parent    string // id of the resource that it belongs to below the workspace, "" for none
	ID        string
	Name      string
	Revision  int64 // 1 after Insert; Update raises it by one
	Created   time.Time
	Updated   time.Time
	Doc       json.RawMessage // a JSON object: the resource without what stands above
	// Refs are what the resource points at. They answer "who needs this?", and
	// are written only: a resource that was read comes without them.
	Refs []Ref
	// Quiet leaves Doc out of the resource's events: for documents that hold
	// hashes of secrets, or that are large.
	Quiet bool
}

// Ref is a named reference to something: another resource's id, a digest.
type Ref struct {
	Rel string // such as "version", "blob"
	To  string
}

// Tx is a transaction. It is used by one goroutine, within fn only. Errors are
// *atelier.Error: NotFound, Exists (the name is taken), Stale (the revision is
// not the stored one), Invalid (a limit outside 1 to 1000, a malformed
// resource), and NoSpace, Unavailable, Timeout or Internal where the engine fails.
// A Tx stays usable after any of the first four; after an engine's failure Update
// fails whatever fn returns. Strings that no engine can store find nothing.
type Tx interface {
	// Get returns the resource of kind with the id, in workspace ("" only finds
	// the hub's own).
	Get(kind, workspace, id string) (Resource, error)
	// Find returns the resource with the name.
	Find(kind, workspace, parent, name string) (Resource, error)
	// List returns a page of resources ordered by id, byte by byte.
	List(q Query) ([]Resource, error)
	// Insert adds a resource, with its event. Revision, Created and Updated are
	// set by the store; an empty ID becomes a new one.
	Insert(r Resource) (Resource, error)
	// Update replaces Name, Doc and Refs of the resource whose Revision is
	// r.Revision, with its event. Kind, workspace, parent and id never change.
	Update(r Resource) (Resource, error)
	// Record replaces Doc and Refs without an event and without raising the
	// revision: for what is observed often (a device was seen), never for what
	// a person decided. Stale where r.Revision is not the stored one.
	Record(r Resource) error
	// Delete removes the resource and its references, with its event. A
	// revision of 0 deletes whatever is there. Others may still point at it: ask
	// Referrers first.
	Delete(kind, workspace, id string, revision int64) error
	// Referrers returns at most limit resources that point at to with rel.
	Referrers(rel, to string, limit int) ([]Resource, error)

	// Events returns events after a sequence in their order, at most limit.
	Events(q EventQuery) ([]atelier.Event, error)
	// LastEvent returns the newest event's sequence, 0 where there is none.
	LastEvent() (int64, error)

	// Audit appends to the audit trail. An empty time, actor or request is taken
	// from the clock and from By. Over-long strings are cut, never refused.
	Audit(a AuditEntry) error
	// AuditTrail returns the workspace's entries ("" for the hub's own) after a
	// sequence in their order, at most limit.
	AuditTrail(workspace string, after int64, limit int) ([]AuditEntry, error)

	// Trim removes the oldest events and entries of the audit trail that were
	// written before the given times; at most limit of each, and never the newest,
	// whose sequence the next one follows. It returns how many it removed.
	Trim(events, audit time.Time, limit int) (int64, error)

	// Remember keeps the answer to a request with an idempotency key. An answer
	// whose Status is 0 reserves the key until the real one is known. Exists where
	// the key is there already; but what has expired (see a.Now) is replaced by
	// anything, and a reservation by an answer with a status.
	Remember(a Answer) error
	// Recall returns the answer kept under (actor, key); NotFound where there is none
	// or it has expired.
	Recall(actor, key string, now time.Time) (Answer, error)
	// Forget removes answers that have expired before now.
	Forget(now time.Time) error
}

// Query selects resources. Whoever pages through a kind sees each resource that
// was there from the first page to the last exactly once, whatever is inserted
// or deleted meanwhile.
type Query struct {
	Kind      string
	Workspace string
	Parent    string // "" for any
	After     string // id after which the page begins; "" for the first page
	Limit     int    // 1 to 1000
	// Rel and To, where set, select only those that point at To with Rel.
	Rel, To string
}

// EventQuery selects events.
type EventQuery struct {
	Workspace string // id; "" selects the hub's own; see AnyWorkspace
	// AnyWorkspace selects the events of all workspaces and the hub's own.
	AnyWorkspace bool
	Kind         string // "" for any
	ID           string // "" for any
	After        int64
	Limit        int
}

// AuditEntry is one decision on one verb.
type AuditEntry struct {
	Sequence  int64     `json:"sequence"`
	Time      time.Time `json:"time"`
	Workspace string    `json:"workspace,omitempty"`
	Actor     string    `json:"actor"`
	Verb      string    `json:"verb"` // such as "model.register"
	Kind      string    `json:"kind,omitempty"`
	Object    string    `json:"object,omitempty"` // id or name of what it was about
	Allowed   bool      `json:"allowed"`
	Why       string    `json:"why,omitempty"` // the rule that decided
	Request   string    `json:"request,omitempty"`
}

// Answer is a remembered answer to a request with an idempotency key.
type Answer struct {
	Actor   string
	Key     string
	Request string // hash of method, path and body: the same key with another request is refused
	Status  int    // 0 while the request is being worked on
	Header  json.RawMessage
	Body    []byte
	Now     time.Time // the caller's clock when it is remembered; not stored; zero for the store's
	Expires time.Time // not after Now to let the key go
}
