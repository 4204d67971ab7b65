package messages

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Filter says which messages of a device are wanted.
type Filter struct {
	Module, Output string // "" for any
	After          string // the id of the last that was seen, "" for none
	Limit          int
}

// maxPage bounds how many bytes of payload one page has, and maxScan how many batches are
// looked at for it.
const (
	maxPage = 4 << 20
	maxScan = 20000
)

// List returns the messages of a device in the order in which they came, and the id of the
// last that was looked at where there may be more, "" otherwise. Those that are older than what
// is kept are not shown. The error is Invalid for an After that List did not give.
func (s *Store) List(dev atelier.Device, f Filter) (page []atelier.ModuleMessage, next string, err error) {
	of, sequence, index := "", uint64(0), -1
	if f.After != "" {
		if of, sequence, index, err = parseID(f.After); err != nil {
			return nil, "", err
		}
	}
	d := s.device(dev.ID)
	defer d.mu.Unlock()
	sp, err := s.files(dev.ID, d, false)
	if err != nil || sp == nil {
		return nil, "", err
	}
	stream := sp.Stats().Stream
	if of != stream { // all of what is there came after it
		sequence, index = 0, -1
	}
	after := sequence
	if index >= 0 && after > 0 {
		after-- // the batch may hold more
	}
	oldest := s.cfg.Now().Add(-s.cfg.Keep)
	size, last := 0, f.After
	for range maxScan {
		e, ok, err := sp.Next(after)
		if err != nil {
			return nil, "", err
		}
		if !ok {
			return page, "", nil
		}
		after = e.Sequence
		_, _, batch, ok := split(e.Batch.Payload)
		list, err := wire.DecodeMessages(batch)
		if !ok || err != nil || e.Batch.Taken.Wall.Before(oldest) {
			continue // of another version of the hub, or too old
		}
		for i := range list {
			m := &list[i]
			if e.Sequence == sequence && i <= index {
				continue
			}
			id := formatID(stream, e.Sequence, i)
			if f.Module != "" && m.Module != f.Module || f.Output != "" && m.Output != f.Output {
				last = id
				continue
			}
			if len(page) == f.Limit || size+len(m.Payload) > maxPage && len(page) > 0 {
				return page, last, nil
			}
			size += len(m.Payload)
			last = id
			page = append(page, show(dev.Name, id, m, e.Batch.Taken.Wall))
		}
	}
	return page, last, nil
}

func formatID(stream string, sequence uint64, index int) string {
	return fmt.Sprintf("%s-%d-%d", stream, sequence, index)
}

func parseID(id string) (stream string, sequence uint64, index int, err error) {
	parts := strings.Split(id, "-")
	if len(parts) == 3 && atelier.IsID(parts[0]) {
		sequence, err = strconv.ParseUint(parts[1], 10, 63)
		if err == nil {
			index, err = strconv.Atoi(parts[2])
		}
		if err == nil && index >= 0 {
			return parts[0], sequence, index, nil
		}
	}
	return "", 0, 0, atelier.Errorf(atelier.Invalid, "%.80q is not the id of a message", id).WithField("after").
		WithRemedy("Take it from a message of the same device.")
}

func show(device, id string, m *wire.ModuleMessage, received time.Time) atelier.ModuleMessage {
	out := atelier.ModuleMessage{
		ID: id, Device: device, Module: m.Module, Output: m.Output, Time: time.UnixMilli(m.Time).UTC(), Received: received.UTC(), ContentType: m.ContentType,
	}
	for _, p := range m.Properties {
		out.Properties = append(out.Properties, atelier.MessageProperty(p))
	}
	switch {
	case json.Valid(m.Payload) && utf8.Valid(m.Payload):
		out.JSON = json.RawMessage(m.Payload)
	case utf8.Valid(m.Payload):
		out.Text = string(m.Payload)
	default:
		out.Base64 = m.Payload
	}
	return out
}
