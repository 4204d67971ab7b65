package fleet

import (
	"context"
	"slices"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/wire"
)

// session is what the hub remembers of a device that is, or may be, connected.
type session struct {
	device, workspace string
	id                string // from hello; "" before it
	root, delegation  int    // versions of the trust that the device holds
	packed            bool   // it reads packed messages
	heard             time.Time
	live              bool // the broker says that the connection stands

	acked, newest atelier.Position
	refused       bool // the device refused newest
	attempts      int  // of sending newest
	next          time.Time
}

// maxEarlier is how many ended sessions are remembered, so that nobody who
// recorded a hello can open one of them again.
const maxEarlier = 64

// restore remembers the sessions of devices that were connected when the hub
// stopped: with an external broker they do not notice that it did.
func (f *Fleet) restore(ctx context.Context) error {
	now := f.clock.Now()
	found := map[string]*session{}
	err := f.store.View(ctx, func(tx store.Tx) error {
		clear(found)
		return catalog.Workspaces.Each(tx, store.Query{}, func(w atelier.Workspace) error {
			return catalog.Devices.Each(tx, store.Query{Workspace: w.ID}, func(d atelier.Device) error {
				if !d.Connected || d.Revoked != nil {
					return nil
				}
				r, err := catalog.ReportedStates.Get(tx, w.ID, d.ID)
				if err != nil && !isNotFound(err) {
					return err
				}
				desired, err := catalog.DesiredStates.Get(tx, w.ID, d.ID)
				if err != nil && !isNotFound(err) {
					return err
				}
				found[d.ID] = &session{
					device: d.ID, workspace: w.ID, id: r.Session, heard: now, next: now,
					acked: r.Acked, newest: desired.Position, refused: refuses(r, desired.Position),
					packed: slices.Contains(d.Facts.Features, atelier.FeaturePacked),
				}
				return nil
			})
		})
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sessions = found
	return err
}

func refuses(r catalog.ReportedState, p atelier.Position) bool {
	return r.Refused != nil && r.Refused.Position == p
}

// hello opens a session, or answers once more for the one that is open.
func (f *Fleet) hello(ctx context.Context, p *peer, h wire.Hello) error {
	if !atelier.IsID(h.Session) {
		f.ignore(p.device, "hello with a malformed session")
		return nil
	}
	if len(h.Requires) > 0 {
		// This hub has no features that a hello could need; a newer one may.
		f.log.Warn("a device is not welcomed: its agent needs a newer hub; update the hub", "device", p.device, "requires", h.Requires, "agent", h.Agent)
		return nil
	}
	if err := f.access.Authorize(p.as(ctx), access.DeviceConnect, p.object()); err != nil {
		f.ignore(p.device, "hello is not authorised", "error", err)
		return nil
	}
	var reported catalog.ReportedState
	var desired catalog.DesiredState
	replayed := false
	now := f.clock.Now().UTC()
	err := f.store.Update(ctx, asHub, func(tx store.Tx) (err error) {
		replayed = false
		if reported, err = f.reportedOf(tx, p); err != nil {
			return err
		}
		if slices.Contains(reported.Earlier, h.Session) {
			replayed = true
			return nil
		}
		if desired, err = catalog.DesiredStates.Get(tx, p.workspace, p.device); err != nil && !isNotFound(err) {
			return err
		}
		if reported.Session != h.Session {
			if reported.Session != "" {
				reported.Earlier = append(reported.Earlier, reported.Session)
				reported.Earlier = reported.Earlier[max(0, len(reported.Earlier)-maxEarlier):]
			}
			reported.Session = h.Session
		}
		reported.Acked = h.Position
		reported.Refused = nil
		if err := catalog.ReportedStates.Record(tx, p.workspace, reported); err != nil {
			return err
		}
		return f.observe(tx, p, func(d *atelier.Device) {
			d.Connected, d.LastSeen, d.Agent, d.Facts = true, &now, h.Agent, h.Facts
		})
	})
	if err != nil {
		return err
	}
	if replayed {
		f.ignore(p.device, "hello of a session that has ended", "session", h.Session)
		return nil
	}
	if h.Position.After(desired.Position) {
		// The hub was restored from a backup, or a state was lost: go on beyond
		// what the device has, or it would refuse everything as replayed.
		f.log.Warn("a device is ahead of its hub", "device", p.name, "error", atelier.Errorf(atelier.Stale,
			"device %s holds generation %d of epoch %d, and the newest that this hub knows of for it is generation %d of epoch %d: its data are older than the device's; what it knows is made the device's next state",
			p.name, h.Position.Generation, h.Position.Epoch, desired.Position.Generation, desired.Position.Epoch).
			WithRemedy("If the hub was restored from a backup, deploy again what was changed since, and join again the devices that joined since. If not, look who else has its keys."))
		f.overtake(p.workspace, p.device, h.Position)
	}

	f.mu.Lock()
	s := f.session(p)
	s.id, s.root, s.delegation = h.Session, h.RootVersion, h.DelegationVersion
	s.packed = slices.Contains(h.Facts.Features, atelier.FeaturePacked)
	s.heard, s.acked, s.newest, s.refused = f.clock.Now(), h.Position, desired.Position, false
	s.attempts, s.next = 0, time.Time{}
	f.mu.Unlock()
	// A newer state may have been made before the session was there to be told.
	err = f.store.View(ctx, func(tx store.Tx) (err error) {
		desired, err = catalog.DesiredStates.Get(tx, p.workspace, p.device)
		return err
	})
	if err != nil && !isNotFound(err) {
		return err
	}
	f.changed(p.device, desired.Position)

	var stored, data, messages map[string]uint64
	if f.telemetry != nil {
		stored = f.telemetry.Acked(p.device)
	}
	if f.data != nil {
		data = f.data.Acked(p.device)
	}
	if f.messages != nil {
		messages = f.messages.Acked(p.device)
	}
	if err := f.sendTrust(ctx, p.workspace, p.device, h.RootVersion, h.DelegationVersion); err != nil {
		return err
	}
	err = f.say(ctx, p.workspace, p.device, wire.TypeWelcome, wire.Welcome{
		Session: h.Session, Position: desired.Position, Time: now, Telemetry: stored, Data: data, Messages: messages,
	})
	f.wakeDelivery()
	f.uploads.reconnected(p.device)
	return err
}

// session returns the device's session, a new one where there is none. f.mu is held.
func (f *Fleet) session(p *peer) *session {
	s := f.sessions[p.device]
	if s == nil {
		s = &session{device: p.device, workspace: p.workspace}
		f.sessions[p.device] = s
	}
	return s
}

// heard notes that the device gave a sign of life, and returns its session's id.
func (f *Fleet) heard(device string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sessions[device]
	if s == nil {
		return ""
	}
	s.heard = f.clock.Now()
	return s.id
}

// Presence implements broker.Handler.
func (f *Fleet) Presence(ctx context.Context, device string, connected bool) {
	p, err := f.peer(ctx, device)
	if err != nil {
		f.ignore(device, "presence of an unknown device", "error", err)
		return
	}
	if !connected {
		if err := f.gone(ctx, p, ""); err != nil {
			f.log.Error("cannot record that a device has disconnected; it will count as gone by its silence", "device", device, "error", err)
		}
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.session(p)
	s.live, s.heard = true, f.clock.Now()
}

// gone ends the device's session where it is the one with the id; "" for any.
func (f *Fleet) gone(ctx context.Context, p *peer, id string) error {
	f.mu.Lock()
	s := f.sessions[p.device]
	if s == nil || id != "" && s.id != id {
		f.mu.Unlock()
		return nil
	}
	delete(f.sessions, p.device)
	heard := s.heard.UTC()
	f.mu.Unlock()
	return f.store.Update(ctx, asHub, func(tx store.Tx) error {
		return f.observe(tx, p, func(d *atelier.Device) {
			d.Connected = false
			if !heard.IsZero() {
				d.LastSeen = &heard
			}
		})
	})
}

// observe changes what is observed of a device. Whether it is connected, which
// agent it runs and what its facts say are events; the rest is only recorded.
func (f *Fleet) observe(tx store.Tx, p *peer, edit func(*atelier.Device)) error {
	d, err := catalog.Devices.Get(tx, p.workspace, p.device)
	if err != nil {
		return err
	}
	before := d
	edit(&d)
	if d.Connected == before.Connected && d.Agent == before.Agent && sameFacts(d.Facts, before.Facts) && sameConditions(d.Conditions, before.Conditions) {
		return catalog.Devices.Record(tx, p.workspace, d)
	}
	_, err = catalog.Devices.Update(tx, p.workspace, d)
	return err
}

// sameFacts compares what stays the same while nothing happens.
func sameFacts(a, b atelier.Facts) bool {
	return a.OS == b.OS && a.Arch == b.Arch && a.Kernel == b.Kernel && a.Hostname == b.Hostname && a.CPUs == b.CPUs &&
		a.Memory == b.Memory && a.Gateway == b.Gateway && slices.Equal(a.Targets, b.Targets) &&
		slices.Equal(a.Runtimes, b.Runtimes) && slices.Equal(a.Features, b.Features)
}

func sameConditions(a, b []atelier.Condition) bool {
	return slices.EqualFunc(a, b, func(x, y atelier.Condition) bool {
		return x.Type() == y.Type() && x.True() == y.True() && x.Why().Reason() == y.Why().Reason()
	})
}

// watchSilence ends sessions of devices that have said nothing for too long.
func (f *Fleet) watchSilence(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.clock.After(f.silence / 6):
		}
		now := f.clock.Now()
		var silent []session
		f.mu.Lock()
		for _, s := range f.sessions {
			if !s.live && now.Sub(s.heard) > f.silence {
				silent = append(silent, *s)
			}
		}
		f.mu.Unlock()
		for _, s := range silent {
			p := &peer{device: s.device, workspace: s.workspace}
			if err := f.gone(ctx, p, s.id); err != nil && !isNotFound(err) && ctx.Err() == nil {
				return err
			}
		}
	}
}
