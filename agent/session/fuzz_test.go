package session

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/agenttest"
	"github.com/atelier-edge/atelier/agent/state"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// heard counts what a session passes on.
type heard struct{ welcomed, acked, revoked, collected, desired int }

func (h *heard) Welcomed(string, wire.Welcome) { h.welcomed++ }
func (h *heard) Lost()                         {}
func (h *heard) Desired()                      { h.desired++ }
func (h *heard) Acked(wire.Ack)                { h.acked++ }
func (h *heard) Revoked(wire.Revoked)          { h.revoked++ }
func (h *heard) Collect(context.Context, wire.Collect) wire.Collected {
	h.collected++
	return wire.Collected{}
}

// FuzzReceive hands a session messages: as they come, and signed by the hub.
// What nobody signed has no effect, and a state that is not sound is not saved,
// whoever signed it.
func FuzzReceive(f *testing.F) {
	types := []string{wire.TypeWelcome, wire.TypeDesired, wire.TypeAck, wire.TypeTrust, wire.TypeRevoked, wire.TypeCollect, "text/plain"}
	hub, device := agenttest.NewAuthority(f), atelier.NewID()
	key, err := trust.NewDeviceKey()
	if err != nil {
		f.Fatal(err)
	}
	signer, err := trust.NewSigner(key)
	if err != nil {
		f.Fatal(err)
	}
	for i := range types {
		f.Add(true, uint8(i), []byte(`{}`))
	}
	good, err := json.Marshal(atelier.DesiredState{Workspace: hub.Workspace, Device: device, Epoch: 1, Generation: 1, Modules: []atelier.Module{agenttest.Module("digits", nil)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(true, uint8(1), good)
	f.Add(true, uint8(1), []byte(`{"modules":[{"deployment":"../x"}]}`))
	f.Add(true, uint8(3), []byte(`{"envelopes":[null,{"payload":"e30="}]}`))
	f.Add(false, uint8(1), good)
	f.Add(false, uint8(0), hub.Sign(f, wire.TypeRevoked, wire.Revoked{}))
	f.Add(false, uint8(0), wire.Pack(hub.Sign(f, wire.TypeAck, wire.Ack{Stream: "report"})))
	f.Fuzz(func(t *testing.T, signed bool, kind uint8, payload []byte) {
		disk, events := durabletest.NewDisk(), &heard{}
		options := state.Options{FS: disk, Dir: "/state", Device: device, Workspace: hub.Workspace, Root: hub.Root(), Delegation: hub.Delegation()}
		store, err := state.Open(options)
		if err != nil {
			t.Fatal(err)
		}
		s := New(Options{
			Device: device, Agent: "1", Signer: signer, State: store, Events: events, Log: slog.New(slog.DiscardHandler),
			Publish: func(context.Context, wire.Channel, []byte) error { return nil },
			Facts:   func() atelier.Facts { return atelier.Facts{} },
			Clock:   func() wire.Clock { return wire.Clock{Wall: time.Unix(0, 0)} },
		})
		raw := payload
		if signed {
			if !json.Valid(payload) {
				return
			}
			raw = hub.Sign(t, types[int(kind)%len(types)], json.RawMessage(payload))
		}
		plain, genuine := wire.Unpack(raw)
		if genuine == nil {
			_, _, genuine = store.Verify(plain)
		}
		s.handle(t.Context(), raw)
		if genuine != nil && *events != (heard{}) {
			t.Fatalf("%q had the effect %+v, and nobody signed it", raw, *events)
		}
		again, err := state.Open(options)
		if err != nil {
			t.Fatalf("%q left a state that cannot be opened: %v", raw, err)
		}
		if d := again.Desired(); d != nil && (d.Device != device || d.Workspace != hub.Workspace || genuine != nil) {
			t.Fatalf("%q was saved as the state of device %q in workspace %q", raw, d.Device, d.Workspace)
		}
	})
}
