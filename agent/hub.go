package agent

import (
	"context"
	"fmt"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/collect"
	"github.com/atelier-edge/atelier/agent/enrol"
	"github.com/atelier-edge/atelier/agent/link"
	"github.com/atelier-edge/atelier/agent/report"
	"github.com/atelier-edge/atelier/agent/session"
	"github.com/atelier-edge/atelier/agent/telemetry"
	records "github.com/atelier-edge/atelier/internal/collect"
	"github.com/atelier-edge/atelier/internal/content/transfer"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// openHub makes the parts that talk with the hub.
func (a *agent) openHub(signer trust.Signer) (err error) {
	a.link, err = link.New(link.Options{
		Brokers: a.identity.MQTT, Device: a.identity.Device, Shard: a.identity.Shard, TLS: a.identity.TLSConfig,
		Handler: connection{a}, Log: a.log.With("part", "link"),
	})
	if err != nil {
		return err
	}
	a.collector, err = collect.Open(collect.Options{Dir: a.places.data(), Modules: a.collected, Link: a.link, Log: a.log.With("part", "collect")})
	if err != nil {
		return err
	}
	a.telemetry, err = telemetry.Open(telemetry.Options{
		Dir: a.places.spool(), Budget: a.config.Telemetry.SpoolBytes, Interval: time.Duration(a.config.Telemetry.Interval),
		StateDir: a.places.State, Gateway: a.gateway.Client().Status, Modules: a.runner.Status, Content: &a.arrivals, Collected: a.collector.Stats, Changed: a.changed, Link: a.link,
		Log: a.log.With("part", "telemetry"),
	})
	if err != nil {
		return err
	}
	a.session = session.New(session.Options{
		Device: a.identity.Device, Agent: a.opts.Version, Signer: signer, State: a.store, Publish: a.link.Publish,
		Facts: a.currentFacts, Clock: telemetry.ReadClock, Events: a, Log: a.log.With("part", "session"),
	})
	a.reporter = report.New(report.Options{
		Snapshot: a.snapshot, Send: a.session.Report, Silent: a.silent, Times: report.DefaultTimes,
	})
	a.renewer = enrol.NewRenewer(enrol.RenewerOptions{Identity: a.identity, Renewed: a.renewed, Log: a.log.With("part", "enrol")})
	a.sender = transfer.NewSender(transfer.SenderOptions{
		Open:     func(_ context.Context, _ string, d digest) (transfer.Blob, error) { return a.uploads.open(d) },
		Send:     func(_ string, frame []byte) error { return a.sendContent(frame) },
		MaxFrame: wire.MaxPacket, Transfers: 4, PerPeer: 4, Plans: 2, Workers: 1, Log: a.log.With("part", "content"),
	})
	return nil
}

// collected are the modules whose requests are to be recorded.
func (a *agent) collected() []collect.Module {
	var all []collect.Module
	for _, m := range a.runner.Collected() {
		all = append(all, collect.Module{
			Deployment: m.Deployment, Name: m.Name, Rollout: m.Rollout, Socket: m.Socket + records.Suffix, Collection: m.Collection,
		})
	}
	return all
}

// contentLimit is how long a content frame may wait for its connection.
const contentLimit = 30 * time.Second

func (a *agent) sendContent(frame []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), contentLimit)
	defer cancel()
	return a.link.Publish(ctx, wire.Content, frame)
}

// connection is what the link tells.
type connection struct{ *agent }

// Open implements link.Handler.
func (c connection) Open() (link.Session, error) {
	id, will, err := c.session.Bye()
	return link.Session{ID: id, Will: will}, err
}

// Up implements link.Handler.
func (c connection) Up(session string) {
	c.mu.Lock()
	c.up = session
	c.mu.Unlock()
	c.setConnected(unanswered("The connection stands, and the hub has not answered the device's hello yet."))
	c.session.Up(session)
}

// Down implements link.Handler.
func (c connection) Down(_ string, err error) {
	c.session.Down()
	c.mu.Lock()
	c.up = ""
	c.mu.Unlock()
	c.setConnected(atelier.Fails(atelier.ConditionConnected, link.WhyOf(err)))
	if link.Refused(err) {
		c.renewer.Refused()
	}
}

// ContentUp implements link.Handler.
func (c connection) ContentUp() { c.receiver.Reconnected() }

// Control implements link.Handler.
func (c connection) Control(payload []byte) { c.session.Receive(payload) }

// hubPeer names the hub to the two halves of the content protocol.
const hubPeer = "hub"

// Content implements link.Handler.
func (c connection) Content(frame []byte) {
	if transfer.ToSender(frame) {
		c.sender.Handle(hubPeer, frame)
	} else {
		c.receiver.Handle(frame)
	}
}

// setConnected notes whether the hub talks with the device.
func (a *agent) setConnected(c atelier.Condition) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.revoked == nil || c.Why().Reason() == atelier.ReasonRevoked { // that is the last word
		a.connected = c.Following(a.connected, time.Now())
	}
}

// unanswered says that the broker has the device's connection, and the hub says nothing.
func unanswered(message string) atelier.Condition {
	return atelier.Fails(atelier.ConditionConnected, atelier.Because(atelier.ReasonHubSilent, message))
}

// disconnected says that the hub revoked the device.
func disconnected(r *wire.Revoked) atelier.Condition {
	return atelier.Fails(atelier.ConditionConnected, atelier.Because(atelier.ReasonRevoked,
		fmt.Sprintf("The hub revoked this device at %s: %s", r.Time.UTC().Format(time.RFC3339), r.Reason)))
}

// silent is told by the reporter that the hub acknowledges nothing.
func (a *agent) silent() {
	a.setConnected(unanswered("The connection stands, and the hub acknowledges nothing that the device says."))
	a.session.HelloAgain()
}

// Welcomed implements session.Events.
func (a *agent) Welcomed(id string, w wire.Welcome) {
	if err := a.identity.HubSays(w.Time); err != nil {
		a.log.Error("connecting anew", "error", err)
		a.link.Reconnect()
		return
	}
	a.mu.Lock()
	a.welcomed = id
	stands := a.up == id
	a.mu.Unlock()
	if stands {
		a.setConnected(atelier.Holds(atelier.ConditionConnected, atelier.Because(atelier.ReasonAsDesired, "The hub has welcomed the device.")))
	}
	a.reporter.Begin(id)
	if err := a.telemetry.Connected(w.Telemetry); err != nil {
		a.log.Warn("cannot note what telemetry the hub has", "error", err)
	}
	if err := a.collector.Connected(w.Data); err != nil {
		a.log.Warn("cannot note what collected records the hub has", "error", err)
	}
	a.router.Connected(w.Messages)
}

// Lost implements session.Events.
func (a *agent) Lost() {
	a.mu.Lock()
	a.welcomed = ""
	a.mu.Unlock()
	a.reporter.End()
	a.telemetry.Disconnected()
	a.collector.Disconnected()
	a.router.Disconnected()
}

// Desired implements session.Events.
func (a *agent) Desired() {
	a.runner.Wake()
	a.changed()
}

// Acked implements session.Events.
func (a *agent) Acked(ack wire.Ack) {
	if ack.Stream == wire.StreamReport {
		a.reporter.Acked(ack.Session, ack.Through)
		return
	}
	if err := a.telemetry.Acked(ack.Stream, ack.Through); err != nil {
		a.log.Warn("cannot note what telemetry the hub has", "error", err)
	}
	if err := a.collector.Acked(ack.Stream, ack.Through); err != nil {
		a.log.Warn("cannot note what collected records the hub has", "error", err)
	}
	a.router.Acked(ack.Stream, ack.Through)
}

// Revoked implements session.Events: the device stops connecting, and keeps its
// modules.
func (a *agent) Revoked(r wire.Revoked) {
	a.mu.Lock()
	a.revoked = &r
	a.mu.Unlock()
	a.setConnected(disconnected(&r))
	a.log.Error("the device does not connect any more; its modules go on", "why", disconnected(&r).Why())
	a.cut()
}

// goodbye bounds the farewell.
const goodbye = 2 * time.Second

// farewell tells the hub that the session ends on purpose. A hub that does not
// hear it finds out by itself.
func (a *agent) farewell(ctx context.Context) {
	a.mu.Lock()
	id := a.welcomed
	a.mu.Unlock()
	if id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, goodbye)
	defer cancel()
	if err := a.session.Farewell(ctx, id); err != nil {
		a.log.Debug("the farewell did not reach the hub", "error", err)
	}
}
