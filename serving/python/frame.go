package python

import (
	"encoding/binary"
	"encoding/json"
	"io"

	atelier "github.com/atelier-edge/atelier"
)

// A frame is what worker and pool say to each other: a head of 12 bytes
// (version, kind, number as uint16, the lengths of meta and body as uint32, all
// little-endian), then meta, a JSON object, then body, which is bytes to both. An
// answer has the number of its request, all others have 0.
const (
	frameVersion = 1
	headSize     = 12
	// maxMeta is the largest meta: a request's header fields in JSON's longest form.
	maxMeta = 1 << 20
	// maxAnswer is the largest body of an answer.
	maxAnswer = 256 << 20
)

// The kinds of frames.
const (
	kindStart   = 1 // to the worker, once: which script to load; body is the source of rawhttp.py
	kindReady   = 2 // from the worker: init() has returned
	kindFailed  = 3 // from the worker: it has not, and why
	kindRequest = 4 // to the worker: one request
	kindAnswer  = 5 // from the worker: its answer
)

type frame struct {
	kind   byte
	number uint16
	meta   []byte
	body   []byte
}

// writeFrame writes one frame. meta is made JSON.
func writeFrame(w io.Writer, kind byte, number uint16, meta any, body []byte) error {
	b := make([]byte, headSize, 512)
	text, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	if len(text) > maxMeta {
		return atelier.Errorf(atelier.TooLarge, "the request's header fields are larger than a scoring script is given: %d bytes, at most %d were expected", len(text), maxMeta)
	}
	b[0], b[1] = frameVersion, kind
	binary.LittleEndian.PutUint16(b[2:], number)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(text)))
	binary.LittleEndian.PutUint32(b[8:], uint32(len(body)))
	b = append(b, text...)
	const small = 64 << 10 // copying less than that is quicker than a second call
	if len(body) < small {
		_, err = w.Write(append(b, body...))
		return err
	}
	if _, err = w.Write(b); err == nil {
		_, err = w.Write(body)
	}
	return err
}

// readFrame reads one frame. Nothing is allocated for bytes that did not come. An
// error that says that the frame is malformed is Invalid, all others are r's.
func readFrame(r io.Reader) (frame, error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	f := frame{kind: head[1], number: binary.LittleEndian.Uint16(head[2:])}
	meta, body := int64(binary.LittleEndian.Uint32(head[4:])), int64(binary.LittleEndian.Uint32(head[8:]))
	switch {
	case head[0] != frameVersion:
		return frame{}, atelier.Errorf(atelier.Invalid, "a frame of version %d came, %d was expected", head[0], frameVersion)
	case f.kind < kindStart || f.kind > kindAnswer:
		return frame{}, atelier.Errorf(atelier.Invalid, "a frame of kind %d came, which there is none of", f.kind)
	case f.number != 0 && f.kind != kindRequest && f.kind != kindAnswer:
		return frame{}, atelier.Errorf(atelier.Invalid, "a frame of kind %d has the number %d, 0 was expected", f.kind, f.number)
	case meta > maxMeta:
		return frame{}, atelier.Errorf(atelier.Invalid, "the meta of a frame has %d bytes, at most %d were expected", meta, maxMeta)
	case body > maxAnswer:
		return frame{}, atelier.Errorf(atelier.TooLarge, "an answer of %d bytes came, at most %d were expected", body, int64(maxAnswer))
	}
	var err error
	if f.meta, err = readAll(r, meta); err != nil {
		return frame{}, err
	}
	f.body, err = readAll(r, body)
	return f, err
}

// readAll reads n bytes, with room for no more than twice of what came.
func readAll(r io.Reader, n int64) ([]byte, error) {
	const first = 1 << 20
	b := make([]byte, min(n, first))
	for done := int64(0); ; {
		if _, err := io.ReadFull(r, b[done:]); err != nil {
			return nil, noEOF(err)
		}
		if done = int64(len(b)); done == n {
			return b, nil
		}
		b = append(b, make([]byte, min(done, n-done))...)
	}
}

// noEOF makes the end of what is read within a frame an unexpected one.
func noEOF(err error) error {
	if err == io.EOF { //nolint:errorlint // ReadFull returns it as it is
		return io.ErrUnexpectedEOF
	}
	return err
}

// decode reads the meta of a frame into v.
func (f *frame) decode(v any) error {
	if err := json.Unmarshal(f.meta, v); err != nil {
		return atelier.Errorf(atelier.Invalid, "the meta of a frame of kind %d cannot be read: %w", f.kind, err)
	}
	return nil
}
