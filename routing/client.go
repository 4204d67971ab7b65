package routing

import (
	"context"
	"fmt"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
	"github.com/atelier-edge/atelier/routing/mqtt"
)

// client is a connection of a module. It implements mqtt.Peer, and sink.
type client struct {
	router *Router
	module *module
	name   string
	conn   *mqtt.Conn
	wake   chan struct{} // the twin may have to be told
}

// The topics of a module.
func ownTopics(module string) string         { return "modules/" + module + "/" }
func inputTopic(module, input string) string { return ownTopics(module) + "inputs/" + input }
func desiredTopic(module string) string      { return ownTopics(module) + "twin/desired" }
func reportedTopic(module string) string     { return ownTopics(module) + "twin/reported" }

// output returns the output that a topic of the module names, "" for none.
func (c *client) output(topic string) string {
	output, ok := strings.CutPrefix(topic, ownTopics(c.name)+"outputs/")
	if !ok || !atelier.IsPortName(output) {
		return ""
	}
	return output
}

// refuse counts what the module may not do, and says so.
func (c *client) refuse(err *atelier.Error) error {
	c.router.mu.Lock()
	c.module.refused++
	c.module.lastRefusal = err.Error()
	c.router.mu.Unlock()
	return err
}

// MayPublish implements mqtt.Peer.
func (c *client) MayPublish(topic string) error {
	if topic == reportedTopic(c.name) || c.output(topic) != "" {
		return nil
	}
	return c.refuse(atelier.Errorf(atelier.Forbidden, "module %s published to %.200q; it may publish to %soutputs/NAME and %s", c.name, topic, ownTopics(c.name), reportedTopic(c.name)))
}

// MaySubscribe implements mqtt.Peer.
func (c *client) MaySubscribe(filter string) error {
	if filter == desiredTopic(c.name) {
		return nil
	}
	input, ok := strings.CutPrefix(filter, ownTopics(c.name)+"inputs/")
	if ok && (input == "+" || input == "#" || atelier.IsPortName(input) && !isModelInput(input)) {
		return nil
	}
	return c.refuse(atelier.Errorf(atelier.Forbidden, "module %s subscribed to %.200q; it may subscribe to %sinputs/NAME, %sinputs/+ and %s", c.name, filter, ownTopics(c.name), ownTopics(c.name), desiredTopic(c.name)))
}

// Publish implements mqtt.Peer.
func (c *client) Publish(m mqtt.Message, kept func(error)) {
	if m.Topic == reportedTopic(c.name) {
		err := c.router.report(c.name, m.Payload)
		if err != nil {
			c.router.mu.Lock()
			c.module.refused++
			c.module.lastRefusal = fmt.Sprintf("module %s reported what cannot be kept: %v", c.name, err)
			c.router.mu.Unlock()
			c.router.opts.Log.Warn("what a module reports cannot be kept", "module", c.name, "error", err)
		}
		kept(err)
		return
	}
	c.router.publish(c.module, c.name, c.output(m.Topic), m, func(err error) {
		if err != nil {
			c.router.opts.Log.Warn("a message of a module cannot be kept", "module", c.name, "topic", m.Topic, "error", err)
		}
		kept(err)
	})
}

// Subscribed implements mqtt.Peer.
func (c *client) Subscribed() {
	c.router.mu.Lock()
	c.router.signal()
	c.router.mu.Unlock()
	c.nudge()
}

// Closed implements mqtt.Peer.
func (c *client) Closed() {
	c.router.mu.Lock()
	delete(c.module.clients, c)
	c.router.signal()
	c.router.mu.Unlock()
	c.conn.End(false)
}

func (c *client) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// send implements sink.
func (c *client) send(ctx context.Context, q *queue, m *wire.ModuleMessage, ttl uint32) (*delivery, error) {
	out := mqtt.Message{Topic: inputTopic(q.key.into, q.key.input), Payload: m.Payload, ContentType: m.ContentType, Expiry: ttl}
	for _, p := range m.Properties {
		out.Properties = append(out.Properties, mqtt.Property(p))
	}
	out.Properties = append(out.Properties,
		mqtt.Property{Key: "$module", Value: m.Module}, mqtt.Property{Key: "$output", Value: m.Output},
		mqtt.Property{Key: "$time", Value: time.UnixMilli(m.Time).UTC().Format(time.RFC3339Nano)})
	taken, err := c.conn.Send(ctx, out)
	if err != nil {
		return nil, err
	}
	return &delivery{done: taken}, nil
}

// closed implements sink.
func (c *client) closed() <-chan struct{} { return c.conn.Done() }

// tellTwin sends the module its desired properties, when it subscribes to them and when
// they change, until the connection ends.
func (c *client) tellTwin() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	told := int64(-1)
	for {
		select {
		case <-c.wake:
		case <-c.conn.Done():
			return
		}
		if _, ok := c.conn.Subscribed(desiredTopic(c.name)); !ok {
			told = -1
			continue
		}
		c.router.mu.Lock()
		twin := c.module.Twin
		c.router.mu.Unlock()
		if twin == nil {
			twin = &atelier.DesiredTwin{}
		}
		if twin.Version == told {
			continue
		}
		// Retained is what is there when a client subscribes (MQTT 5, section 3.3.1.3).
		m := mqtt.Message{Topic: desiredTopic(c.name), Payload: withVersion(twin), ContentType: "application/json", Retain: told < 0}
		if _, err := c.conn.Send(ctx, m); err != nil {
			continue // the connection ends
		}
		told = twin.Version
	}
}

// withVersion returns the properties with their version as $version.
func withVersion(t *atelier.DesiredTwin) []byte {
	head := fmt.Appendf(nil, `{"$version":%d`, t.Version)
	if len(t.Properties) <= 2 {
		return append(head, '}')
	}
	return append(append(head, ','), t.Properties[1:]...)
}
