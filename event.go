package atelier

import (
	"encoding/json"
	"time"
)

// Event tells of one change to one resource. Every change writes its event in
// the same transaction; history, watches and notifications read them.
type Event struct {
	Sequence  int64           `json:"sequence"` // grows over the whole hub; gaps are allowed
	Time      time.Time       `json:"time"`
	Workspace string          `json:"workspace,omitempty"` // id; "" for the hub's own resources
	Kind      string          `json:"kind"`
	ID        string          `json:"id"`
	Name      string          `json:"name,omitempty"`
	Change    Change          `json:"change"`
	Revision  int64           `json:"revision"`
	Actor     string          `json:"actor"`              // who did it, such as "token:admin" or "device:01…"
	Request   string          `json:"request,omitempty"`  // id of the request that did it
	Resource  json.RawMessage `json:"resource,omitempty"` // the resource after the change; absent for Deleted
}

// Change is what happened to a resource.
type Change string

// The changes.
const (
	Created Change = "created"
	Updated Change = "updated"
	Deleted Change = "deleted"
)
