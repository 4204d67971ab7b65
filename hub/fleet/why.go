package fleet

import (
	"context"
	"fmt"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// Why says why a device is not in its desired state.
type Why struct {
	Device   string    `json:"device"` // name
	InSync   bool      `json:"in_sync"`
	Findings []Finding `json:"findings"`
}

// Finding is one thing that is not as desired.
type Finding struct {
	Subject string      `json:"subject"` // what it is about: "connection", "deployment digits", …
	Why     atelier.Why `json:"why"`
}

// expiresSoon is how long before its end an unrenewed certificate is a finding.
// Devices renew at two thirds of its life, so that one that has come so far failed to.
const expiresSoon = 0.1

// picture is everything that is known of one device.
type picture struct {
	device   atelier.Device
	desired  catalog.DesiredState
	reported catalog.ReportedState
	closed   *atelier.Why // why no content may be transferred now; nil where it may
}

func pictureOf(tx store.Tx, workspace string, d atelier.Device, now time.Time) (picture, error) {
	p := picture{device: d}
	w, err := catalog.Workspaces.Get(tx, "", workspace)
	if err != nil {
		return p, err
	}
	p.closed = windowWhy(&d, w.Transfer, now)
	if p.desired, err = catalog.DesiredStates.Get(tx, workspace, d.ID); err != nil && !isNotFound(err) {
		return p, err
	}
	if p.reported, err = catalog.ReportedStates.Get(tx, workspace, d.ID); err != nil && !isNotFound(err) {
		return p, err
	}
	return p, nil
}

// Why returns what keeps a device, a name or an id, from its desired state, and
// what would mend it. Where there is nothing, InSync is true and Findings empty.
func (f *Fleet) Why(ctx context.Context, workspace, ref string) (Why, error) {
	var p picture
	now := f.clock.Now()
	err := f.store.View(ctx, func(tx store.Tx) error {
		d, err := catalog.Devices.Resolve(tx, workspace, "", ref)
		if err != nil {
			return err
		}
		p, err = pictureOf(tx, workspace, d, now)
		return err
	})
	if err != nil {
		return Why{}, err
	}
	findings := p.findings(now)
	if why, bad := f.conduct.why(p.device.ID, now); bad {
		findings = append(findings, Finding{"conduct", why})
	}
	return Why{Device: p.device.Name, InSync: len(findings) == 0, Findings: findings}, nil
}

func (p *picture) findings(now time.Time) []Finding {
	found := []Finding{}
	add := func(subject string, why atelier.Why) { found = append(found, Finding{subject, why}) }
	d := &p.device
	if d.Revoked != nil || !d.Connected {
		add("connection", connectionWhy(d, now))
	}
	if why := certificateWhy(d, now); why != nil {
		add("certificate", *why)
	}
	if d.Revoked != nil {
		return found // nothing of what follows will change
	}
	if r := p.reported.Refused; r != nil && r.Position == p.desired.Position {
		add("desired state", atelier.Because(r.Why.Reason(), "The device refuses its desired state: "+r.Why.Message()).WithRemedy(r.Why.Remedy()))
	} else if p.desired.Position.After(p.reported.Acked) {
		add("desired state", p.behindWhy())
	}
	for _, u := range p.desired.Unmet {
		subject := map[catalog.Part]string{catalog.Served: "deployment ", catalog.Held: "prefetch for ", catalog.Tried: "trial in ", catalog.Collected: "collecting of "}[u.Part()]
		add(subject+u.Name, u.Why)
	}
	for i := range p.desired.Modules {
		m := &p.desired.Modules[i]
		if s := p.status(m); s.State() != atelier.Serving || s.Why().Reason() != atelier.ReasonAsDesired {
			add("deployment "+m.Name, s.Why())
		}
	}
	for i := range p.desired.Staged {
		m := &p.desired.Staged[i]
		if s := p.held(m); s.State() != atelier.StagedState {
			add("prefetch for "+m.Name, s.Why())
		}
	}
	for i := range p.desired.Trials {
		m := &p.desired.Trials[i]
		if s := p.beside(&m.Module); s.State() != atelier.Serving || s.Why().Reason() != atelier.ReasonAsDesired {
			add(string(m.Split.Kind)+" in "+m.Name, trialWhy(m, s))
		}
	}
	if s := p.reported.State; s != nil {
		for _, c := range s.Conditions {
			if !c.True() {
				add("condition "+c.Type(), c.Why())
			}
		}
	}
	return found
}

// connectionWhy says why a device cannot be reached.
func connectionWhy(d *atelier.Device, now time.Time) atelier.Why {
	switch {
	case d.Revoked != nil:
		return atelier.Because(atelier.ReasonRevoked, fmt.Sprintf("Device %s was revoked %s ago, at %s.", d.Name, ago(now, *d.Revoked), stamp(*d.Revoked)))
	case d.LastSeen == nil:
		return atelier.Because(atelier.ReasonNeverConnected, fmt.Sprintf("Device %s joined %s ago and has never connected.", d.Name, ago(now, d.Created)))
	default:
		return atelier.Because(atelier.ReasonUnreachable, fmt.Sprintf("Device %s is not connected; the hub heard from it last %s ago, at %s.", d.Name, ago(now, *d.LastSeen), stamp(*d.LastSeen)))
	}
}

// certificateWhy says what is wrong with a device's certificate, nil where nothing is.
func certificateWhy(d *atelier.Device, now time.Time) *atelier.Why {
	c := d.Certificate
	if d.Revoked != nil || c.NotAfter.IsZero() {
		return nil
	}
	expired := func(format string, args ...any) *atelier.Why {
		why := atelier.Because(atelier.ReasonCertificateExpired, fmt.Sprintf(format, args...))
		return &why
	}
	left := c.NotAfter.Sub(now)
	switch {
	case left <= 0:
		return expired("The certificate of %s ran out %s ago, at %s.", d.Name, ago(now, c.NotAfter), stamp(c.NotAfter))
	case left < time.Duration(expiresSoon*float64(c.NotAfter.Sub(c.NotBefore))):
		return expired("The certificate of %s ends at %s and was not renewed yet.", d.Name, stamp(c.NotAfter))
	}
	return nil
}

// behindWhy says that the newest desired state was not saved yet.
func (p *picture) behindWhy() atelier.Why {
	newest, acked := p.desired.Position, p.reported.Acked
	message := fmt.Sprintf("The device has not saved desired state %d.%d yet; ", newest.Epoch, newest.Generation)
	if acked == (atelier.Position{}) {
		message += "it has none."
	} else {
		message += fmt.Sprintf("it has %d.%d.", acked.Epoch, acked.Generation)
	}
	if !p.device.Connected {
		return atelier.Because(atelier.ReasonWaiting, message).WithRemedy("It is sent as soon as the device connects.")
	}
	return atelier.Because(atelier.ReasonInProgress, message).WithRemedy("It is being sent; look again in a moment.")
}

func ago(now, then time.Time) string {
	d := now.Sub(then)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }
