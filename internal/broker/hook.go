package broker

import (
	"context"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/atelier-edge/atelier/internal/wire"
)

// hook binds the broker library to our rules. Facts of the library that it
// works around (mochi 2.7.9): last wills pass no access check; an error from
// OnPublish is not heeded unless it is ErrRejectPacket, which leaves QoS 1
// without an answer, or CodeSuccessIgnore; OnDisconnect is not called for a
// connection that fails while it is set up; retained messages that were switched
// off are answered with a code that MQTT 3.1.1 does not know, which clients take
// for success, so that we refuse them ourselves.
type hook struct {
	mqtt.HookBase
	e *Embedded
}

func (h *hook) ID() string { return "atelier" }

func (h *hook) Provides(b byte) bool {
	switch b {
	case mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSessionEstablished,
		mqtt.OnPacketRead, mqtt.OnPublish, mqtt.OnPublishDropped, mqtt.OnWill:
		return true
	}
	return false
}

// OnConnectAuthenticate lets a connection in whose client id is the name in its
// certificate, or that with wire.ContentClientSuffix. It takes over from an
// earlier connection with the same id.
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, pk packets.Packet) bool {
	c, ok := cl.Net.Conn.(*conn)
	if !ok || c.certificate == nil {
		return false
	}
	device := c.certificate.Subject.CommonName
	if id := strings.TrimSuffix(cl.ID, wire.ContentClientSuffix); id != device {
		h.e.misbehaves(device, "it wanted to connect as another client")
		return h.refuse("client id is not the certificate's name", "certificate", device, "client", cl.ID)
	}
	if w := pk.Connect; w.WillFlag && (w.WillRetain || len(w.WillPayload) > wire.MaxPacket || !h.mayPublish(device, w.WillTopic)) {
		h.e.misbehaves(device, "it wanted a last will that it may not have")
		return h.refuse("last will is not allowed", "client", cl.ID, "topic", pk.Connect.WillTopic)
	}
	if keep := time.Duration(cl.State.Keepalive) * time.Second; keep == 0 || keep > maxKeepAlive {
		cl.State.Keepalive = uint16(maxKeepAlive / time.Second)
	}

	// The connection is registered before Admit is asked, so that a Disconnect
	// that follows a revocation finds it, or Admit knows of the revocation.
	e := h.e
	e.mu.Lock()
	c.device, c.client, c.version = device, cl.ID, pk.ProtocolVersion
	ctx, in := e.ctx, e.inbox
	e.mu.Unlock()
	if err := in.handler.Admit(ctx, device, c.certificate); err != nil {
		return h.refuse("device is not admitted", "device", device, "error", err)
	}
	e.mu.Lock()
	old := e.current[cl.ID]
	e.current[cl.ID] = c
	e.settle(c)
	e.mu.Unlock()
	if old != nil && !end(ctx, old) {
		return h.refuse("an earlier connection does not end", "client", cl.ID)
	}
	return true
}

// end closes a connection and waits until the library has forgotten it; false
// where it does not. Left to the library, a take-over would first write to the
// old connection, and wait for a peer that does not read; and what the library
// tidies up when the old one ends it knows by client id, so that, late, it would
// take the new one's subscription away.
func end(ctx context.Context, old *conn) bool {
	_ = old.Close()
	late := time.NewTimer(connectTimeout)
	defer late.Stop()
	select {
	case <-old.ended:
		return true
	case <-late.C:
	case <-ctx.Done():
	}
	return false
}

func (h *hook) refuse(why string, args ...any) bool {
	h.e.count.refused.Add(1)
	h.e.log.Info("broker refused a connection: "+why, args...)
	return false
}

// misbehaves tells the handler what a device tried.
func (e *Embedded) misbehaves(device, what string) {
	e.mu.Lock()
	in := e.inbox
	e.mu.Unlock()
	in.handler.Refused(device, what)
}

func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	c, ok := cl.Net.Conn.(*conn)
	if !ok {
		return
	}
	h.e.mu.Lock()
	c.established = true
	current := h.e.current[c.client] == c
	h.e.mu.Unlock()
	if current && c.client == c.device {
		h.e.inbox.presence(c.device, true)
	}
}

func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	c, ok := cl.Net.Conn.(*conn)
	if !ok {
		return false
	}
	if write {
		ok = h.mayPublish(c.device, topic)
	} else {
		ok = wire.MaySubscribe(c.device, topic)
	}
	if !ok {
		h.e.count.refused.Add(1)
		h.e.log.Debug("broker refused a topic", "device", c.device, "topic", topic, "write", write)
		h.e.misbehaves(c.device, "it wanted a topic that is not its own")
	}
	return ok
}

func (h *hook) mayPublish(device, topic string) bool {
	shard, _, _, ok := wire.ParseUp(topic)
	return ok && shard == h.e.cfg.Shard && wire.MayPublish(device, topic)
}

// OnPacketRead ends the connection of whoever wants a message retained.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if pk.FixedHeader.Type == packets.Publish && pk.FixedHeader.Retain && !cl.Net.Inline {
		h.e.count.refused.Add(1)
		if c, ok := cl.Net.Conn.(*conn); ok {
			h.e.misbehaves(c.device, "it wanted a message retained")
		}
		return pk, packets.ErrRejectPacket
	}
	return pk, nil
}

// OnPublish takes a message off the broker: no other client may read it.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Inline {
		return pk, nil
	}
	h.receive(pk.TopicName, pk.Payload)
	return pk, packets.CodeSuccessIgnore
}

// OnWill takes a last will, which was checked when the connection began.
func (h *hook) OnWill(_ *mqtt.Client, will mqtt.Will) (mqtt.Will, error) {
	h.receive(will.TopicName, will.Payload)
	return will, nil
}

func (h *hook) OnPublishDropped(*mqtt.Client, packets.Packet) { h.e.count.dropped.Add(1) }

func (h *hook) receive(topic string, payload []byte) {
	if _, device, channel, ok := wire.ParseUp(topic); ok {
		h.e.inbox.message(Message{device, channel, payload})
	}
}
