package topics

import (
	"net/http"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	atelier "github.com/atelier-edge/atelier"
)

// hook binds the broker library to our rules. Facts of the library that it works
// around are listed in internal/broker.
type hook struct {
	mqtt.HookBase
	s *Server
}

func (h *hook) ID() string { return "endpoints" }

func (h *hook) Provides(b byte) bool {
	switch b {
	case mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnPacketRead, mqtt.OnPublish:
		return true
	}
	return false
}

// OnPacketRead keeps clients of different endpoints apart that call themselves alike,
// and ends the connection of whoever wants a message retained.
func (h *hook) OnPacketRead(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	switch pk.FixedHeader.Type {
	case packets.Connect:
		if id := pk.Connect.ClientIdentifier; id != "" {
			pk.Connect.ClientIdentifier = string(pk.Connect.Username) + "/" + id
		}
	case packets.Publish:
		if pk.FixedHeader.Retain {
			return pk, packets.ErrRejectPacket
		}
	}
	return pk, nil
}

// OnConnectAuthenticate admits whoever has a key of an endpoint.
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, pk packets.Packet) bool {
	c, ok := cl.Net.Conn.(*session)
	if !ok || pk.Connect.WillFlag {
		return false
	}
	if keep := time.Duration(cl.State.Keepalive) * time.Second; keep == 0 || keep > maxKeepAlive {
		cl.State.Keepalive = uint16(maxKeepAlive / time.Second)
	}
	endpoint, key := string(pk.Connect.Username), string(pk.Connect.Password)
	h.s.mu.Lock() // so that a key that goes away now is seen here, or by Recheck
	defer h.s.mu.Unlock()
	if !h.s.opts.Admit(endpoint, key) {
		return false
	}
	c.endpoint, c.key = endpoint, key
	return true
}

// OnACLCheck lets a client ask its endpoint and read the answers, nothing else.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	c, ok := cl.Net.Conn.(*session)
	if !ok || c.endpoint == "" {
		return false
	}
	if write {
		_, _, ok := parse(topic, c.endpoint)
		return ok
	}
	return strings.HasPrefix(topic, answers(c.endpoint))
}

// OnPublish takes a request off the broker: no other client may read it.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Inline {
		return pk, nil
	}
	c, ok := cl.Net.Conn.(*session)
	if !ok {
		return pk, packets.ErrRejectPacket
	}
	route, tag, ok := parse(pk.TopicName, c.endpoint)
	if !ok {
		return pk, packets.ErrRejectPacket
	}
	q := request{c.endpoint, route, tag, pk}
	if to := pk.Properties.ResponseTopic; to != "" && (!strings.HasPrefix(to, answers(c.endpoint)) || strings.ContainsAny(to, "+#")) {
		q.packet.Properties.ResponseTopic = ""
		h.s.answer(q, refusal(http.StatusBadRequest, atelier.Errorf(atelier.Invalid, "the response topic is %.100q, one below %s was expected", to, answers(c.endpoint))))
		return pk, packets.CodeSuccessIgnore
	}
	h.s.accept(c, q)
	return pk, packets.CodeSuccessIgnore
}
