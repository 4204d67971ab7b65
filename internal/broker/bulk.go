package broker

import (
	"encoding/binary"
	"sync"

	mqtt "github.com/mochi-mqtt/server/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Content goes past the broker library's queues: the library would copy each frame
// twice, into memory that it asks for anew each time, and that is what a hub that sends
// to many devices is most busy with. Whoever is subscribed, and may be, it still says.

// bulk is the queue of content for a connection. It is there from the first frame on.
type bulk struct {
	mu     sync.Mutex
	frames chan bulkFrame // nil before there was one
	over   bool           // the connection has ended
}

type bulkFrame struct {
	topic   string
	payload []byte
}

// bulkConn returns the connection that a message goes to past the library; nil where it
// is to go through it: what is no content, and clients of MQTT 5, which want more.
func (e *Embedded) bulkConn(topic string, subs *mqtt.Subscribers) *conn {
	device, channel, ok := wire.ParseDown(topic)
	client := device + wire.ContentClientSuffix
	if _, subscribed := subs.Subscriptions[client]; !ok || channel != wire.Content || !subscribed || len(subs.Subscriptions) != 1 {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.current[client]; c != nil && c.version == 4 {
		return c
	}
	return nil
}

// push queues a frame for c; what overflows the queue is lost, and counted.
func (e *Embedded) push(c *conn, f bulkFrame) error {
	c.bulk.mu.Lock()
	defer c.bulk.mu.Unlock()
	if c.bulk.over {
		return atelier.Errorf(atelier.Unavailable, "no device listens to %s", f.topic)
	}
	if c.bulk.frames == nil {
		c.bulk.frames = make(chan bulkFrame, outboundMessages)
		e.wg.Go(c.drain)
	}
	select {
	case c.bulk.frames <- f:
	default:
		e.count.dropped.Add(1)
	}
	return nil
}

// endBulk lets no more frames come.
func (c *conn) endBulk() {
	c.bulk.mu.Lock()
	defer c.bulk.mu.Unlock()
	c.bulk.over = true
}

// written holds memory for packets that are being written: one for each connection
// that is being written to, not for each connection.
var written = sync.Pool{New: func() any { b := make([]byte, 0, maxPacket); return &b }}

// drain writes frames until the connection ends.
func (c *conn) drain() {
	for {
		select {
		case <-c.ended:
			return
		case f := <-c.bulk.frames:
			b := written.Get().(*[]byte)
			*b = appendPublish((*b)[:0], f)
			_, err := c.Write(*b)
			written.Put(b)
			if err != nil {
				c.endBulk() // Write has closed it
				return
			}
		}
	}
}

// appendPublish appends a PUBLISH of MQTT 3.1.1 (3.3) with QoS 0.
func appendPublish(b []byte, f bulkFrame) []byte {
	b = append(b, 0x30)
	b = binary.AppendUvarint(b, uint64(2+len(f.topic)+len(f.payload))) // MQTT's lengths are these up to 4 bytes
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.topic)))
	b = append(b, f.topic...)
	return append(b, f.payload...)
}
