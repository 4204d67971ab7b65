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

// push queues a frame for c. What overflows the queue is Exhausted, and counted.
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
		return nil
	default:
		e.count.dropped.Add(1)
		return atelier.Errorf(atelier.Exhausted, "the device reads more slowly than content is sent to it")
	}
}

// endBulk lets no more frames come.
func (c *conn) endBulk() {
	c.bulk.mu.Lock()
	defer c.bulk.mu.Unlock()
	c.bulk.over = true
}

// record is what one record of TLS holds at most.
const record = 16 << 10

// firsts holds memory for the beginnings of packets that are being written.
var firsts = sync.Pool{New: func() any { b := make([]byte, 0, record); return &b }}

// drain writes frames until the connection ends.
func (c *conn) drain() {
	for {
		select {
		case <-c.ended:
			return
		case f := <-c.bulk.frames:
			if err := c.writeFrame(f); err != nil {
				c.endBulk()
				return
			}
		}
	}
}

// writeFrame writes a packet. The first record's worth of it is put together here, and
// the rest written as it lies.
func (c *conn) writeFrame(f bulkFrame) error {
	b := firsts.Get().(*[]byte)
	defer firsts.Put(b)
	*b = appendHeader((*b)[:0], f)
	n := min(len(f.payload), max(record-len(*b), 0))
	*b = append(*b, f.payload[:n]...)
	return c.writePacket(*b, f.payload[n:])
}

// appendHeader appends what comes before the payload of a PUBLISH of MQTT 3.1.1
// (3.3) with QoS 0.
func appendHeader(b []byte, f bulkFrame) []byte {
	b = append(b, 0x30)
	b = binary.AppendUvarint(b, uint64(2+len(f.topic)+len(f.payload))) // MQTT's lengths are these up to 4 bytes
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.topic)))
	return append(b, f.topic...)
}
