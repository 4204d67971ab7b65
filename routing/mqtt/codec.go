package mqtt

import (
	"bytes"
	"fmt"
	"io"

	"github.com/mochi-mqtt/server/v2/packets"

	atelier "github.com/atelier-edge/atelier"
)

// readPacket reads one packet of at most most bytes. A packet that cannot be read is
// Invalid, a larger one TooLarge; what the connection fails with comes as it is.
func readPacket(r io.Reader, version byte, most int) (*packets.Packet, error) {
	var head [1]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	pk := &packets.Packet{ProtocolVersion: version}
	if err := pk.FixedHeader.Decode(head[0]); err != nil {
		return nil, malformed(err)
	}
	length, err := readLength(r)
	if err != nil {
		return nil, err
	}
	if length > most {
		return pk, atelier.Errorf(atelier.TooLarge, "a packet has %d bytes, at most %d are taken", length, most)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	pk.FixedHeader.Remaining = length
	return pk, decode(pk, body)
}

// readLength reads the length of a packet (MQTT 5, section 2.1.4).
func readLength(r io.Reader) (length int, err error) {
	var b [1]byte
	for shift := 0; shift < 28; shift += 7 {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return 0, err
		}
		length |= int(b[0]&0x7f) << shift
		if b[0] < 0x80 {
			return length, nil
		}
	}
	return 0, malformed(packets.ErrMalformedVariableByteInteger)
}

func malformed(err error) error {
	return atelier.Errorf(atelier.Invalid, "a packet cannot be read: %w", err)
}

// decode reads a packet's body. The library indexes without looking in places.
func decode(pk *packets.Packet, body []byte) (err error) {
	defer func() {
		if fault := recover(); fault != nil {
			err = atelier.Errorf(atelier.Invalid, "a packet cannot be read: %v", fault)
		}
	}()
	valid := packets.CodeSuccess
	switch pk.FixedHeader.Type {
	case packets.Connect:
		if err = pk.ConnectDecode(body); err == nil {
			valid = pk.ConnectValidate()
		}
	case packets.Publish:
		if err = pk.PublishDecode(body); err == nil {
			valid = pk.PublishValidate(0)
		}
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Subscribe:
		if err = pk.SubscribeDecode(body); err == nil {
			valid = pk.SubscribeValidate()
		}
	case packets.Unsubscribe:
		if err = pk.UnsubscribeDecode(body); err == nil {
			valid = pk.UnsubscribeValidate()
		}
	case packets.Pingreq:
	case packets.Disconnect:
		if len(body) > 0 {
			err = pk.DisconnectDecode(body)
		}
	default:
		err = fmt.Errorf("a client may not send a packet of type %d", pk.FixedHeader.Type)
	}
	if err == nil && valid != packets.CodeSuccess {
		err = valid
	}
	if err != nil {
		return malformed(err)
	}
	return nil
}

// encode returns a packet as it goes over the wire.
func encode(pk *packets.Packet) ([]byte, error) {
	var b bytes.Buffer
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackEncode(&b)
	case packets.Publish:
		err = pk.PublishEncode(&b)
	case packets.Puback:
		err = pk.PubackEncode(&b)
	case packets.Suback:
		err = pk.SubackEncode(&b)
	case packets.Unsuback:
		err = pk.UnsubackEncode(&b)
	case packets.Pingresp:
		err = pk.PingrespEncode(&b)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&b)
	default:
		err = fmt.Errorf("no packet of type %d is sent", pk.FixedHeader.Type)
	}
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode a packet: %w", err)
	}
	return b.Bytes(), nil
}
