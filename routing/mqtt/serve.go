package mqtt

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	atelier "github.com/atelier-edge/atelier"
)

// serve carries the connection from CONNECT to its end.
func (c *Conn) serve() {
	defer c.end(packets.CodeDisconnect.Code)
	_ = c.SetReadDeadline(time.Now().Add(connectTime)) // fails with the connection only
	pk, err := readPacket(c.r, 4, maxConnect)
	if err != nil || pk.FixedHeader.Type != packets.Connect {
		c.server.opts.Log.Debug("a client began with something else than CONNECT", "error", err)
		return
	}
	c.version, c.id = pk.ProtocolVersion, pk.Connect.ClientIdentifier
	if !c.admit(pk) {
		return
	}
	var acking sync.WaitGroup
	acking.Go(c.acknowledge)
	will := c.read(pk)
	c.end(packets.CodeDisconnect.Code)
	acking.Wait()
	if will && pk.Connect.WillFlag {
		c.peer.Publish(Message{
			Topic: pk.Connect.WillTopic, Payload: pk.Connect.WillPayload, Expiry: pk.Connect.WillProperties.MessageExpiryInterval,
			ContentType: pk.Connect.WillProperties.ContentType, Properties: properties(pk.Connect.WillProperties.User),
		}, func(error) {}) // nobody is there to be told
	}
	c.peer.Closed()
}

func properties(user []packets.UserProperty) (all []Property) {
	for _, p := range user {
		all = append(all, Property{p.Key, p.Val})
	}
	return all
}

// admit answers CONNECT.
func (c *Conn) admit(pk *packets.Packet) bool {
	answer := &packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connack}}
	refuse := func(old byte, code packets.Code, err error) bool {
		c.server.opts.Log.Warn("a client was not admitted", "user", string(pk.Connect.Username), "client", c.id, "error", err)
		answer.ReasonCode = old
		if c.version == 5 {
			answer.ReasonCode = code.Code
		}
		_ = c.write(answer) // the connection ends
		return false
	}
	if c.version != 4 && c.version != 5 {
		return refuse(1, packets.ErrUnsupportedProtocolVersion, errors.New("it speaks another version than MQTT 3.1.1 and 5"))
	}
	if c.id == "" && c.version == 4 && !pk.Connect.Clean {
		return refuse(2, packets.ErrClientIdentifierNotValid, errors.New("it has no client id"))
	}
	assigned := c.version == 5 && c.id == ""
	if assigned {
		c.id = atelier.NewID() // before others can see it
	}
	peer, err := c.server.opts.Admit(c, string(pk.Connect.Username), string(pk.Connect.Password))
	if err != nil {
		return refuse(5, packets.ErrNotAuthorized, err)
	}
	c.peer = peer
	if pk.Connect.WillFlag {
		err := peer.MayPublish(pk.Connect.WillTopic)
		if err == nil && pk.Connect.WillQos > 1 {
			err = errors.New("it has QoS 2")
		}
		if err != nil {
			refuse(5, packets.ErrNotAuthorized, fmt.Errorf("its last will cannot be published: %w", err))
			peer.Closed()
			return false
		}
	}
	room := window
	if pk.Properties.ReceiveMaximum > 0 {
		room = min(room, int(pk.Properties.ReceiveMaximum))
	}
	c.slots = make(chan struct{}, room)
	if keep := time.Duration(pk.Connect.Keepalive) * time.Second; keep > 0 {
		c.keepAlive = keep + keep/2
	}
	if c.version == 5 {
		answer.Properties = packets.Properties{
			ReceiveMaximum: window, MaximumPacketSize: uint32(c.server.opts.MaxPacket), MaximumQos: 1, MaximumQosFlag: true,
			SharedSubAvailableFlag: true, SubIDAvailableFlag: true, SessionExpiryIntervalFlag: true,
		}
		if assigned {
			answer.Properties.AssignedClientID = c.id
		}
	}
	if err := c.write(answer); err != nil {
		peer.Closed()
		return false
	}
	return true
}

// read takes packets until the connection ends. will tells whether the client's last will
// is to be published: it went without a word, or asked for that.
func (c *Conn) read(connect *packets.Packet) (will bool) {
	for {
		var deadline time.Time
		if c.keepAlive > 0 {
			deadline = time.Now().Add(c.keepAlive)
		}
		if err := c.SetReadDeadline(deadline); err != nil {
			return true
		}
		pk, err := readPacket(c.r, c.version, c.server.opts.MaxPacket)
		if err == nil && pk.FixedHeader.Type == packets.Disconnect {
			return pk.ReasonCode == packets.CodeDisconnectWillMessage.Code
		}
		if err == nil {
			err = c.take(pk)
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			c.server.opts.Log.Warn("a client's connection is ended", "user", string(connect.Connect.Username), "client", c.id, "error", err)
		}
		switch atelier.CodeOf(err) {
		case atelier.Forbidden:
			c.end(packets.ErrNotAuthorized.Code)
		case atelier.TooLarge:
			c.end(packets.ErrPacketTooLarge.Code)
		case atelier.Unsupported:
			c.end(packets.ErrQosNotSupported.Code)
		case atelier.Invalid:
			c.end(packets.ErrMalformedPacket.Code)
		}
		return true
	}
}

// take takes a packet. An error ends the connection.
func (c *Conn) take(pk *packets.Packet) error {
	switch pk.FixedHeader.Type {
	case packets.Publish:
		return c.publish(pk)
	case packets.Puback:
		c.acknowledged(pk.PacketID)
	case packets.Subscribe:
		return c.subscribe(pk)
	case packets.Unsubscribe:
		c.mu.Lock()
		codes := make([]byte, len(pk.Filters))
		for i, f := range pk.Filters {
			if _, ok := c.filters[f.Filter]; !ok {
				codes[i] = packets.CodeNoSubscriptionExisted.Code
			}
			delete(c.filters, f.Filter)
		}
		c.mu.Unlock()
		c.peer.Subscribed()
		answer := &packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsuback}, PacketID: pk.PacketID}
		if c.version == 5 {
			answer.ReasonCodes = codes
		}
		return c.write(answer)
	case packets.Pingreq:
		return c.write(&packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingresp}})
	default:
		return malformed(errors.New("CONNECT came twice"))
	}
	return nil
}

func (c *Conn) publish(pk *packets.Packet) error {
	qos := pk.FixedHeader.Qos
	if qos > 1 {
		return atelier.Errorf(atelier.Unsupported, "a message came with QoS %d, 0 or 1 was expected", qos)
	}
	if err := c.peer.MayPublish(pk.TopicName); err != nil {
		if qos == 0 || c.version == 4 {
			return err // there is no other way to say it
		}
		return c.await(ack{pk.PacketID, refused(err)})
	}
	m := Message{
		Topic: pk.TopicName, Payload: pk.Payload, QoS: qos, Retain: pk.FixedHeader.Retain, Expiry: pk.Properties.MessageExpiryInterval,
		ContentType: pk.Properties.ContentType, Properties: properties(pk.Properties.User),
	}
	if qos == 0 {
		c.peer.Publish(m, func(error) {})
		return nil
	}
	a := ack{pk.PacketID, make(chan error, 1)}
	c.peer.Publish(m, func(err error) { a.kept <- err })
	return c.await(a)
}

func refused(err error) chan error {
	kept := make(chan error, 1)
	kept <- err
	return kept
}

// await puts an acknowledgement in its place behind those before it.
func (c *Conn) await(a ack) error {
	select {
	case c.acks <- a:
		return nil
	case <-c.done:
		return net.ErrClosed
	}
}

// acknowledge tells the client what is kept, in the order in which it came. A client of
// MQTT 3.1.1 cannot be told that something is not: it loses the connection, and sends again.
func (c *Conn) acknowledge() {
	for {
		var a ack
		select {
		case a = <-c.acks:
		case <-c.done:
			return
		}
		var err error
		select {
		case err = <-a.kept:
		case <-c.done:
			return
		}
		answer := &packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: a.id}
		if err != nil && c.version == 4 {
			c.server.opts.Log.Warn("a client's connection is ended, since a message of it is not kept", "client", c.id, "error", err)
			c.end(0)
			return
		}
		if err != nil {
			answer.ReasonCode = code(err)
			answer.Properties.ReasonString = err.Error()
		}
		if c.write(answer) != nil {
			return
		}
	}
}

func (c *Conn) subscribe(pk *packets.Packet) error {
	answer := &packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Suback}, PacketID: pk.PacketID}
	for _, f := range pk.Filters {
		err := c.peer.MaySubscribe(f.Filter)
		c.mu.Lock()
		_, known := c.filters[f.Filter]
		switch {
		case err != nil && c.version == 5:
			answer.ReasonCodes = append(answer.ReasonCodes, packets.ErrNotAuthorized.Code)
		case err != nil:
			answer.ReasonCodes = append(answer.ReasonCodes, 0x80)
		case !known && len(c.filters) >= maxFilters:
			answer.ReasonCodes = append(answer.ReasonCodes, packets.ErrUnspecifiedError.Code)
		default:
			qos := min(f.Qos, 1)
			c.filters[f.Filter] = qos
			answer.ReasonCodes = append(answer.ReasonCodes, qos)
		}
		c.mu.Unlock()
	}
	err := c.write(answer)
	c.peer.Subscribed()
	return err
}

// matches reports whether a filter, valid or not, takes a topic (MQTT 5, section 4.7).
func matches(filter, topic string) bool {
	for {
		f, restOfFilter, more := strings.Cut(filter, "/")
		if f == "#" {
			return !more
		}
		t, restOfTopic, longer := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !more && !longer {
			return true
		}
		if !longer {
			return restOfFilter == "#"
		}
		if !more {
			return false
		}
		filter, topic = restOfFilter, restOfTopic
	}
}
