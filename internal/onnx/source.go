package onnx

import (
	"errors"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	bigWindow   = 64 << 10 // where reading goes on
	smallWindow = 4 << 10  // after a jump over something that is not read
)

// source is a window on the file.
type source struct {
	r    io.ReaderAt
	size int64
	buf  []byte // what lies at off
	off  int64
	mem  [bigWindow]byte
}

// peek returns at least min(n, rest of the file) bytes at off.
func (s *source) peek(off int64, n int) ([]byte, error) {
	n = int(min(int64(n), s.size-off))
	if from := off - s.off; from >= 0 && from+int64(n) <= int64(len(s.buf)) {
		return s.buf[from:], nil
	}
	window := smallWindow
	if off >= s.off && off <= s.off+int64(len(s.buf)) {
		window = bigWindow
	}
	window = int(min(int64(max(window, n)), s.size-off))
	got, err := s.r.ReadAt(s.mem[:window], off)
	s.buf, s.off = s.mem[:got], off
	if got < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // the file is shorter than its size
		}
		return nil, err
	}
	return s.buf, nil
}

// message is the part of the file that one protocol buffer message takes.
type message struct{ at, end int64 }

// field is one field of a message.
type field struct {
	num   protowire.Number
	typ   protowire.Type
	value uint64  // of a varint or fixed field
	bytes message // of a length-delimited field
}

// next reads the next field of m and moves m behind it; ok is false at the end.
func (d *decoder) next(m *message) (f field, ok bool, err error) {
	if m.at >= m.end {
		return f, false, nil
	}
	if d.budget--; d.budget < 0 {
		return f, false, tooLarge("fields", maxFields)
	}
	// A tag and a varint have at most 10 bytes each.
	b, err := d.src.peek(m.at, 20)
	if err != nil {
		return f, false, err
	}
	b = b[:min(int64(len(b)), m.end-m.at)]
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return f, false, invalid("it has a malformed field")
	}
	f.num, f.typ = num, typ
	b = b[n:]
	m.at += int64(n)
	switch typ {
	case protowire.VarintType:
		f.value, n = protowire.ConsumeVarint(b)
	case protowire.Fixed32Type:
		var v uint32
		v, n = protowire.ConsumeFixed32(b)
		f.value = uint64(v)
	case protowire.Fixed64Type:
		f.value, n = protowire.ConsumeFixed64(b)
	case protowire.BytesType:
		var length uint64
		if length, n = protowire.ConsumeVarint(b); n >= 0 {
			m.at += int64(n)
			if length > uint64(m.end-m.at) {
				return f, false, invalid("it ends in the middle of a field; the file may be truncated")
			}
			f.bytes = message{m.at, m.at + int64(length)}
			m.at = f.bytes.end
			return f, true, nil
		}
	default: // groups, which ONNX has none of
		return f, false, invalid("it has a malformed field")
	}
	if n < 0 {
		return f, false, invalid("it ends in the middle of a field; the file may be truncated")
	}
	m.at += int64(n)
	return f, true, nil
}

// each calls fn for every field of m.
func (d *decoder) each(m message, fn func(field) error) error {
	for {
		f, ok, err := d.next(&m)
		if err != nil || !ok {
			return err
		}
		if err := fn(f); err != nil {
			return err
		}
	}
}

// text returns the bytes of a string field.
func (d *decoder) text(f field) (string, error) {
	if f.typ != protowire.BytesType {
		return "", invalid("a text is not where one must be")
	}
	n := f.bytes.end - f.bytes.at
	if n > maxName {
		return "", tooLarge("bytes in a name", maxName)
	}
	if n == 0 {
		return "", nil
	}
	b, err := d.src.peek(f.bytes.at, int(n))
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// sub returns the message in a field.
func (f field) sub() (message, error) {
	if f.typ != protowire.BytesType {
		return message{}, invalid("a message is not where one must be")
	}
	return f.bytes, nil
}
