package collect

import (
	"encoding/binary"
	"encoding/json"
	"io"

	atelier "github.com/atelier-edge/atelier"
)

// Suffix makes the path of the socket on which a module hands out its records of the
// path of its own.
const Suffix = ".collect"

// What goes over that socket is frames: length of what follows, 4 bytes, big-endian;
// kind, 1 byte; payload. The agent sends settings, the module records and counts.
const (
	kindSettings = 1 // an atelier.Collection as JSON; each replaces the one before
	kindRecord   = 2 // an encoded Record
	kindDropped  = 3 // 8 bytes: how many records the module could not hand over, since it was told last
)

const maxFrame = 1 + MaxRecord

func writeFrame(w io.Writer, kind byte, payload []byte) error {
	b := make([]byte, 5, 5+len(payload))
	binary.BigEndian.PutUint32(b, uint32(1+len(payload)))
	b[4] = kind
	_, err := w.Write(append(b, payload...))
	return err
}

func readFrame(r io.Reader) (kind byte, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 1 || n > maxFrame {
		return 0, nil, atelier.Errorf(atelier.Invalid, "a frame has %d bytes, 1 to %d were expected", n, maxFrame)
	}
	payload = make([]byte, n-1)
	_, err = io.ReadFull(r, payload)
	return head[4], payload, err
}

// Agent is the agent's end of the socket.
type Agent struct{ conn io.ReadWriter }

// NewAgent returns the agent's end of an open connection to a module.
func NewAgent(conn io.ReadWriter) Agent { return Agent{conn} }

// Configure tells the module what to record from now on.
func (a Agent) Configure(c atelier.Collection) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return writeFrame(a.conn, kindSettings, b)
}

// Next returns the next record, or how many the module dropped.
func (a Agent) Next() (record []byte, dropped uint64, err error) {
	for {
		kind, payload, err := readFrame(a.conn)
		switch {
		case err != nil:
			return nil, 0, err
		case kind == kindRecord:
			return payload, 0, nil
		case kind == kindDropped && len(payload) == 8:
			return nil, binary.BigEndian.Uint64(payload), nil
		}
	}
}
