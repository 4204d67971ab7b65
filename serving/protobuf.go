package serving

import (
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	atelier "github.com/atelier-edge/atelier"
)

// protoField is one field of a protobuf message.
type protoField struct {
	within string // what people call the message
	number protowire.Number
	wire   protowire.Type
	value  uint64 // of a number
	bytes  []byte // of anything else, and of packed numbers
}

// fields reads message field by field. within names it in errors.
func fields(message []byte, within string, each func(f *protoField) error) error {
	for at := 0; at < len(message); {
		f := protoField{within: within}
		torn := func(n int) error {
			return atelier.Errorf(atelier.Invalid, "%s is no protobuf message: %w at byte %d", within, protowire.ParseError(n), at)
		}
		n := 0
		if f.number, f.wire, n = protowire.ConsumeTag(message[at:]); n < 0 {
			return torn(n)
		}
		at += n
		switch f.wire {
		case protowire.VarintType:
			f.value, n = protowire.ConsumeVarint(message[at:])
		case protowire.Fixed32Type:
			_, n = protowire.ConsumeFixed32(message[at:])
			f.bytes = message[at:max(at, at+n)]
		case protowire.Fixed64Type:
			_, n = protowire.ConsumeFixed64(message[at:])
			f.bytes = message[at:max(at, at+n)]
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(message[at:])
		default:
			n = protowire.ConsumeFieldValue(f.number, f.wire, message[at:])
		}
		if n < 0 {
			return torn(n)
		}
		at += n
		if err := each(&f); err != nil {
			return err
		}
	}
	return nil
}

// is checks the field's type.
func (f *protoField) is(wire protowire.Type) error {
	if f.wire != wire {
		return atelier.Errorf(atelier.Invalid, "field %d of %s has the wire type %d, %d was expected", f.number, f.within, f.wire, wire)
	}
	return nil
}

func (f *protoField) text(to *string) error {
	if err := f.is(protowire.BytesType); err != nil {
		return err
	}
	if !utf8.Valid(f.bytes) {
		return atelier.Errorf(atelier.Invalid, "field %d of %s is no UTF-8", f.number, f.within)
	}
	*to = string(f.bytes)
	return nil
}

func (f *protoField) message(name string, each func(f *protoField) error) error {
	if err := f.is(protowire.BytesType); err != nil {
		return err
	}
	return fields(f.bytes, name, each)
}

// varints reads a number, or packed ones.
func (f *protoField) varints(each func(v uint64) error) error {
	if f.wire == protowire.VarintType {
		return each(f.value)
	}
	if err := f.is(protowire.BytesType); err != nil {
		return err
	}
	for b := f.bytes; len(b) > 0; {
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return atelier.Errorf(atelier.Invalid, "field %d of %s holds a torn number", f.number, f.within)
		}
		if err := each(v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// fixed returns numbers of size bytes as they lie in the message, one or packed.
func (f *protoField) fixed(size int) ([]byte, error) {
	one := protowire.Fixed32Type
	if size == 8 {
		one = protowire.Fixed64Type
	}
	if f.wire != one {
		if err := f.is(protowire.BytesType); err != nil {
			return nil, err
		}
	}
	if len(f.bytes)%size != 0 {
		return nil, atelier.Errorf(atelier.Invalid, "field %d of %s has %d bytes, which are no numbers of %d bytes each", f.number, f.within, len(f.bytes), size)
	}
	return f.bytes, nil
}

// parameter reads an entry of a map of InferParameter.
func (f *protoField) parameter(to map[string]any) error {
	var key string
	var value any
	err := f.message("a parameter of "+f.within, func(f *protoField) error {
		switch f.number {
		case 1:
			return f.text(&key)
		case 2:
			return f.message(f.within, func(f *protoField) error {
				switch {
				case f.number == 1 && f.wire == protowire.VarintType:
					value = f.value != 0
				case f.number == 2 && f.wire == protowire.VarintType:
					value = int64(f.value)
				case f.number == 3 && f.wire == protowire.BytesType:
					value = string(f.bytes)
				case f.number == 4 && f.wire == protowire.Fixed64Type:
					v, _ := protowire.ConsumeFixed64(f.bytes)
					value = math.Float64frombits(v)
				case f.number == 5 && f.wire == protowire.VarintType:
					value = f.value
				}
				return nil
			})
		}
		return nil
	})
	to[key] = value
	return err
}

func appendText(b []byte, number protowire.Number, s string) []byte {
	if s == "" {
		return b // as proto3 writes it
	}
	return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), s)
}

func appendMessage(b []byte, number protowire.Number, m []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), m)
}

func appendBool(b []byte, number protowire.Number, v bool) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), protowire.EncodeBool(v))
}
