// Package broker carries messages between the hub and its devices over MQTT. It
// is the only importer of a broker library, and of an MQTT client on the hub's
// side.
//
// A Bus promises little on purpose: a message may be lost, come twice or late.
// Whatever matters is numbered, acknowledged and repeated by its users
// (hub/fleet, internal/content/transfer), so that the same code holds on the
// embedded broker and on any MQTT 3.1.1 broker. What a Bus does promise is
// bounds: of packets, of queues, of what one device can take from the others.
//
// The package knows topics and certificates. It opens no message, and knows
// neither workspaces nor what a device may be told.
package broker

import (
	"context"
	"crypto/x509"
	"sync/atomic"

	"github.com/atelier-edge/atelier/internal/wire"
)

// Bus is the hub's side of the message exchange. Its methods are safe for
// concurrent use. There are two engines: Embedded and External.
type Bus interface {
	// Run carries messages to h until ctx ends, then closes every connection,
	// waits until no call of h is running, and returns nil. An error says why it
	// could not begin. Run is called once.
	Run(ctx context.Context, h Handler) error
	// Publish sends payload to topic, which must be one of wire.DownTopic. A nil
	// error promises nothing but that the message was handed on. TooLarge where
	// payload is longer than wire.MaxPacket; Unavailable where it cannot be sent
	// now, for instance because the device is not connected and the engine can
	// tell; Exhausted where content comes faster than the device reads it, and the
	// engine can tell.
	Publish(ctx context.Context, topic string, payload []byte) error
	// Disconnect ends every connection of device. Where the engine has a say in
	// who may connect, Handler.Admit keeps it out from then on.
	Disconnect(ctx context.Context, device string) error
	// Counters returns what the bus counted since it was made.
	Counters() Counters
}

// Handler takes what devices say. Its methods are called by several goroutines;
// calls for the same device and channel come one after another, in the order in
// which the messages came.
type Handler interface {
	// Admit decides whether a device may connect with a certificate that the
	// authority signed; an error keeps it out. Only engines that accept
	// connections themselves ask.
	Admit(ctx context.Context, device string, certificate *x509.Certificate) error
	// Receive takes one message. The payload belongs to the callee.
	Receive(ctx context.Context, m Message)
	// Refused tells that a device wanted something that it may not: a foreign
	// topic, a retained message, a packet beyond the bounds. It does not wait.
	// Only engines that accept connections themselves can tell.
	Refused(device, what string)
	// Presence tells that the device's control connection came or went. Engines
	// that cannot tell never call it.
	Presence(ctx context.Context, device string, connected bool)
}

// Message is what a device published.
type Message struct {
	Device  string
	Channel wire.Channel
	Payload []byte
}

// Counters count messages since the bus was made.
type Counters struct {
	Received uint64 // handed to the handler
	Sent     uint64 // handed to the broker
	Dropped  uint64 // lost because a queue was full
	Refused  uint64 // connections, topics and packets that broke the rules
}

type counters struct {
	received, sent, dropped, refused atomic.Uint64
}

func (c *counters) snapshot() Counters {
	return Counters{c.received.Load(), c.sent.Load(), c.dropped.Load(), c.refused.Load()}
}
