package http1

import (
	"bufio"
	"errors"
	"io"

	atelier "github.com/atelier-edge/atelier"
)

// ErrTooLarge is what a BodyReader ends with when the body is larger than allowed.
var ErrTooLarge = atelier.Errorf(atelier.TooLarge, "the body is larger than is allowed here").
	WithRemedy("Send a smaller batch.")

// maxChunkLine bounds the line before a chunk, and maxTrailer what may follow
// the last one.
const (
	maxChunkLine = 256
	maxTrailer   = 4 << 10
)

// BodyReader reads a body off a connection, whatever its Framing, and ends with
// io.EOF where the body does.
type BodyReader struct {
	r     *bufio.Reader
	frame Framing
	left  int64 // of the body, or of the chunk in progress
	limit int64 // how many bytes may come; chunked bodies only learn it as they come
	first bool  // no chunk has begun
	Done  bool  // all of it was read
}

// NewBodyReader returns the reader of a body that may have limit bytes at most;
// -1 is no limit.
func NewBodyReader(r *bufio.Reader, f Framing, limit int64) *BodyReader {
	b := &BodyReader{r: r, frame: f, limit: limit, first: true}
	if !f.Chunked {
		b.left = f.Length
		b.Done = f.Length == 0
	}
	return b
}

// Read implements io.Reader.
func (b *BodyReader) Read(p []byte) (int, error) {
	if b.Done {
		return 0, io.EOF
	}
	if b.frame.Chunked && b.left == 0 {
		if err := b.nextChunk(); err != nil {
			return 0, err
		}
	}
	if b.left >= 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	if b.left >= 0 {
		b.left -= int64(n)
	}
	if b.limit >= 0 {
		if b.limit -= int64(n); b.limit < 0 {
			return n, ErrTooLarge
		}
	}
	switch {
	case !b.frame.Chunked && b.left == 0:
		b.Done = true
		return n, nil
	case errors.Is(err, io.EOF) && b.left < 0: // the connection's end is the body's
		b.Done = true
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// nextChunk reads the line before a chunk (RFC 9112, section 7.1), and after the
// last one what follows it.
func (b *BodyReader) nextChunk() error {
	if !b.first {
		if line, err := b.line(2); err != nil || len(line) != 0 {
			return badChunk(err)
		}
	}
	b.first = false
	line, err := b.line(maxChunkLine)
	if err != nil {
		return badChunk(err)
	}
	size, digits := int64(0), 0
	for _, c := range line {
		v := hexDigit(c)
		if v < 0 {
			break
		}
		if digits++; digits > 15 {
			return badChunk(nil)
		}
		size = size<<4 | int64(v)
	}
	// Extensions are dropped; nothing but ';', perhaps after blanks, begins them.
	if rest := line[digits:]; digits == 0 || len(rest) > 0 && rest[0] != ';' && rest[0] != ' ' && rest[0] != '\t' || hasControl(rest) {
		return badChunk(nil)
	}
	if size > 0 {
		b.left = size
		return nil
	}
	for left := maxTrailer; ; { // the trailer's fields are dropped
		line, err := b.line(left)
		if err != nil {
			return badChunk(err)
		}
		if len(line) == 0 {
			b.Done = true
			return io.EOF
		}
		left -= len(line) + 2
	}
}

// line reads a line of at most max bytes with its end, and returns it without.
func (b *BodyReader) line(max int) ([]byte, error) {
	line, err := b.r.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	if len(line) > max || len(line) < 2 || line[len(line)-2] != '\r' {
		return nil, badChunk(nil)
	}
	return line[:len(line)-2], nil
}

func badChunk(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case err != nil && !errors.Is(err, bufio.ErrBufferFull):
		return err
	}
	return atelier.Errorf(atelier.Invalid, "the chunked body is malformed")
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// AppendChunk appends p as one chunk; an empty p ends the body.
func AppendChunk(b, p []byte) []byte {
	const digits = "0123456789abcdef"
	started := false
	for shift := 60; shift >= 0; shift -= 4 {
		d := len(p) >> shift & 15
		if started = started || d != 0 || shift == 0; started {
			b = append(b, digits[d])
		}
	}
	b = append(b, "\r\n"...)
	b = append(b, p...)
	return append(b, "\r\n"...)
}
