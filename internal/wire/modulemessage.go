package wire

import (
	"encoding/binary"
	"unicode/utf8"

	atelier "github.com/atelier-edge/atelier"
)

// MessageKind is what a ModuleMessage is.
type MessageKind byte

// The kinds.
const (
	// FromOutput is what a module put out.
	FromOutput MessageKind = 1
	// FromTwin are the reported properties of a module, as a whole: a later one
	// replaces an earlier one.
	FromTwin MessageKind = 2
)

// ModuleMessage is what a module said, on its way within a device or to the hub (up, on the
// channel Messages, in the frames of telemetry).
type ModuleMessage struct {
	Kind        MessageKind
	Module      string     // the deployment's name
	Output      string     // "" of FromTwin
	Time        int64      // by the device's clock, milliseconds since 1970
	TTL         uint32     // seconds that it may wait, 0 for as long as it must
	Version     uint64     // of FromTwin
	ContentType string     // as the module gave it
	Properties  []Property // likewise
	Payload     []byte
}

// Property is a property that a module gave a message.
type Property struct{ Key, Value string }

// The bounds of a message.
const (
	MaxMessagePayload    = 96 << 10 // bytes
	maxMessageProperties = 32
	maxMessageText       = 8 << 10 // bytes of content type and properties together
)

// A batch is: version, 1; messages. A message is: kind, 1 byte; uvarints of time, TTL and
// version; module, output and content type, each behind its length; the number of properties, then
// their keys and values; payload. Lengths and numbers are uvarints.
const messagesVersion = 1

// AppendMessages begins a batch of messages where dst is empty, and adds m to it. It
// fails, with Invalid or TooLarge, where m is out of its bounds.
func AppendMessages(dst []byte, m *ModuleMessage) ([]byte, error) {
	if err := m.check(); err != nil {
		return dst, err
	}
	if len(dst) == 0 {
		dst = append(dst, messagesVersion)
	}
	dst = append(dst, byte(m.Kind))
	for _, n := range []uint64{uint64(m.Time), uint64(m.TTL), m.Version} {
		dst = binary.AppendUvarint(dst, n)
	}
	for _, s := range []string{m.Module, m.Output, m.ContentType} {
		dst = appendText(dst, s)
	}
	dst = binary.AppendUvarint(dst, uint64(len(m.Properties)))
	for _, p := range m.Properties {
		dst = appendText(appendText(dst, p.Key), p.Value)
	}
	dst = binary.AppendUvarint(dst, uint64(len(m.Payload)))
	return append(dst, m.Payload...), nil
}

func appendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// DecodeMessages reads a batch. Payloads share b's memory. The error is Invalid, TooLarge,
// or Unsupported for another version.
func DecodeMessages(b []byte) ([]ModuleMessage, error) {
	if len(b) == 0 {
		return nil, atelier.Errorf(atelier.Invalid, "a batch of messages is empty")
	}
	if b[0] != messagesVersion {
		return nil, atelier.Errorf(atelier.Unsupported, "a batch of messages has version %d, this program reads version %d", b[0], messagesVersion).
			WithRemedy("Update the hub.")
	}
	r := reader{b: b[1:]}
	var all []ModuleMessage
	for len(r.b) > 0 {
		m := ModuleMessage{Kind: MessageKind(r.byte()), Time: int64(r.number(maxWall)), TTL: uint32(r.number(1<<32 - 1)), Version: r.number(1<<63 - 1)}
		m.Module, m.Output, m.ContentType = r.text(), r.text(), r.text()
		for n := r.number(maxMessageProperties); n > 0 && !r.bad; n-- {
			m.Properties = append(m.Properties, Property{r.text(), r.text()})
		}
		m.Payload = r.bytes()
		if r.bad {
			return nil, atelier.Errorf(atelier.Invalid, "a batch of messages ends within message %d, or is out of its bounds there", len(all)+1)
		}
		if err := m.check(); err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	if len(all) == 0 {
		return nil, atelier.Errorf(atelier.Invalid, "a batch of messages holds none")
	}
	return all, nil
}

// reader reads what a hostile writer may have written.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) number(most uint64) uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 || n > most {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) bytes() []byte {
	n := r.number(uint64(len(r.b)))
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) text() string { return string(r.bytes()) }

func (m *ModuleMessage) check() error {
	text := len(m.ContentType)
	for _, p := range m.Properties {
		text += len(p.Key) + len(p.Value)
		if !utf8.ValidString(p.Key) || !utf8.ValidString(p.Value) {
			return atelier.Errorf(atelier.Invalid, "a property of a message is no UTF-8")
		}
	}
	switch {
	case m.Kind != FromOutput && m.Kind != FromTwin:
		return atelier.Errorf(atelier.Invalid, "a message has the kind %d, 1 or 2 was expected", m.Kind)
	case atelier.CheckName("module", m.Module) != nil:
		return atelier.Errorf(atelier.Invalid, "a message comes from %.80q, which is no module's name", m.Module)
	case m.Kind == FromOutput && !atelier.IsPortName(m.Output) || m.Kind == FromTwin && m.Output != "":
		return atelier.Errorf(atelier.Invalid, "a message comes from %.80q, which is no output's name", m.Output)
	case m.Time < 0 || m.Time > maxWall || m.Version > 1<<63-1:
		return atelier.Errorf(atelier.Invalid, "a message's time or version is out of bounds")
	case len(m.Payload) > MaxMessagePayload:
		return atelier.Errorf(atelier.TooLarge, "a message has %d bytes, at most %d are taken", len(m.Payload), MaxMessagePayload)
	case len(m.Properties) > maxMessageProperties || text > maxMessageText:
		return atelier.Errorf(atelier.TooLarge, "a message has %d properties, with %d bytes and its content type; at most %d and %d are taken", len(m.Properties), text, maxMessageProperties, maxMessageText)
	case !utf8.ValidString(m.ContentType):
		return atelier.Errorf(atelier.Invalid, "a message's content type is no UTF-8")
	}
	return nil
}
