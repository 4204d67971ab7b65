package fleet

import (
	"context"
	"crypto/x509"
	"encoding/json"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/broker"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Admit implements broker.Handler.
func (f *Fleet) Admit(ctx context.Context, device string, certificate *x509.Certificate) error {
	return f.admit(ctx, device, certificate)
}

// Receive implements broker.Handler.
func (f *Fleet) Receive(ctx context.Context, m broker.Message) {
	p, err := f.peer(ctx, m.Device)
	switch {
	case err != nil:
		f.ignore(m.Device, "the device is not known", "error", err)
		return
	case p.revoked:
		f.ignore(m.Device, "the device is revoked")
		return
	}
	switch m.Channel {
	case wire.Control:
		if !f.conduct.admit(m.Device, f.clock.Now()) {
			f.ignore(m.Device, "it sends control messages faster than any agent does")
			return
		}
		err = f.control(ctx, p, m.Payload)
	case wire.Content:
		f.frame(ctx, p, m.Payload)
	case wire.Telemetry:
		err = f.measured(ctx, p, f.telemetry, access.TelemetryWrite, "telemetry", m.Payload)
	case wire.Data:
		err = f.measured(ctx, p, f.data, access.DataWrite, "recorded requests", m.Payload)
	case wire.Messages:
		err = f.measured(ctx, p, f.messages, access.MessageWrite, "messages of modules", m.Payload)
	}
	if err != nil && ctx.Err() == nil {
		// Nothing was acknowledged: the device says it again.
		f.log.Error("cannot take in a message", "device", m.Device, "channel", string(m.Channel), "error", err)
	}
}

// control takes a signed message.
func (f *Fleet) control(ctx context.Context, p *peer, raw []byte) error {
	kind, payload, err := trust.Open(raw, p.keys)
	if err != nil {
		f.ignore(p.device, "it is not signed by the device", "error", err)
		return nil
	}
	switch kind {
	case wire.TypeHello:
		return take(f, p, payload, func(h wire.Hello) error { return f.hello(ctx, p, h) })
	case wire.TypeDesiredAck:
		return take(f, p, payload, func(a wire.DesiredAck) error { return f.acknowledged(ctx, p, a) })
	case wire.TypeReported:
		return take(f, p, payload, func(r atelier.ReportedState) error { return f.reported(ctx, p, r) })
	case wire.TypeBye:
		return take(f, p, payload, func(b wire.Bye) error {
			if b.Session == "" || b.Session != f.heard(p.device) {
				f.ignore(p.device, "it ends a session that is not the present one")
				return nil
			}
			return f.gone(ctx, p, b.Session)
		})
	case wire.TypeCollected:
		return take(f, p, payload, func(c wire.Collected) error { return f.collected(p, c) })
	}
	f.ignore(p.device, "its type is not known", "type", kind)
	return nil
}

// take decodes a message and hands it on; what cannot be decoded is ignored.
func take[T any](f *Fleet, p *peer, payload []byte, fn func(T) error) error {
	var m T
	if err := json.Unmarshal(payload, &m); err != nil {
		f.ignore(p.device, "it is malformed", "error", err)
		return nil
	}
	return fn(m)
}

// measured hands telemetry or recorded requests on and acknowledges what was stored.
func (f *Fleet) measured(ctx context.Context, p *peer, sink TelemetrySink, verb access.Verb, what string, frame []byte) error {
	f.heard(p.device)
	if sink == nil {
		f.ignore(p.device, "this hub stores no "+what)
		return nil
	}
	if err := f.access.Authorize(p.as(ctx), verb, p.object()); err != nil {
		f.ignore(p.device, what+" not authorised", "error", err)
		return nil
	}
	var d atelier.Device
	err := f.store.View(ctx, func(tx store.Tx) (err error) {
		d, err = catalog.Devices.Get(tx, p.workspace, p.device)
		return err
	})
	if err != nil {
		return err
	}
	ack, err := sink.Ingest(ctx, p.workspace, d, frame)
	switch code := atelier.CodeOf(err); code {
	case "":
		return f.say(ctx, p.workspace, p.device, wire.TypeAck, ack)
	case atelier.Invalid, atelier.TooLarge, atelier.Unsupported, atelier.Corrupt:
		f.ignore(p.device, what+" malformed", "error", err)
		return nil
	case atelier.Exhausted:
		f.ignore(p.device, what+" faster than it may", "error", err)
		return nil
	}
	return err
}

// say signs a message with the workspace's key and sends it, once. That the
// device cannot be reached is no error: what matters is said again.
func (f *Fleet) say(ctx context.Context, workspace, device, kind string, message any) error {
	payload, err := json.Marshal(message)
	if err != nil {
		return atelier.Errorf(atelier.Internal, "encode %s: %w", kind, err)
	}
	signer, err := f.authority.StateSigner(workspace)
	if err != nil {
		return err
	}
	envelope, err := trust.Sign(kind, payload, signer)
	if err != nil {
		return err
	}
	return f.send(ctx, device, envelope)
}

// send publishes an envelope on the device's control channel, packed where the device
// has said in this session that it reads that.
func (f *Fleet) send(ctx context.Context, device string, envelope []byte) error {
	f.mu.Lock()
	s := f.sessions[device]
	packed := s != nil && s.packed
	f.mu.Unlock()
	if packed {
		envelope = wire.Pack(envelope)
	}
	err := f.bus.Publish(ctx, wire.DownTopic(device, wire.Control), envelope)
	if code := atelier.CodeOf(err); code == atelier.Unavailable || code == atelier.Timeout {
		return nil
	}
	return err
}

// sendTrust sends what the device lacks of root and delegation, if anything.
func (f *Fleet) sendTrust(ctx context.Context, workspace, device string, root, delegation int) error {
	chain, err := f.authority.TrustChain(workspace, root, delegation)
	if err != nil || len(chain) == 0 {
		return err
	}
	return f.say(ctx, workspace, device, wire.TypeTrust, wire.Trust{Envelopes: chain})
}
