package routing

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

// stream is the way to the hub, which the agent opens while the hub has welcomed it.
type stream struct {
	stored map[string]uint64
	frames chan []byte
	ended  chan struct{}
}

const (
	maxTable  = 4 << 20
	maxStored = 1 << 20
)

// Control is what the agent asks over the control socket:
//
//	PUT /table     an atelier.RoutingTable; answered when it is saved and in force
//	GET /status    an atelier.RouterStatus
//	POST /hub      what the hub has stored of each stream, as JSON; the answer are frames for
//	               the hub, each behind its length (4 bytes, big-endian), for as long as the
//	               connection lasts; a second one ends the first
//	POST /acked    {"stream", "through"}: the hub has stored that
func (r *Router) Control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /table", func(w http.ResponseWriter, req *http.Request) {
		b, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxTable))
		if err == nil {
			err = r.Apply(b)
		}
		answer(w, err)
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(r.Status()) // fails with the connection only
	})
	mux.HandleFunc("POST /hub", r.serveHub)
	mux.HandleFunc("POST /acked", func(w http.ResponseWriter, req *http.Request) {
		var a wire.Ack
		err := json.NewDecoder(http.MaxBytesReader(w, req.Body, maxStored)).Decode(&a)
		if err == nil {
			err = r.acked(a)
		}
		answer(w, err)
	})
	return mux
}

func answer(w http.ResponseWriter, err error) {
	switch {
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
	case atelier.CodeOf(err) == atelier.Invalid:
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// acked passes an acknowledgement of the hub on.
func (r *Router) acked(a wire.Ack) error {
	var errs []error
	for _, q := range r.upstream() {
		errs = append(errs, q.sender.Acked(a.Stream, a.Through))
	}
	return errors.Join(errs...)
}

// upstream returns the queues into the workspace.
func (r *Router) upstream() (all []*queue) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.queues {
		if q.sender != nil {
			all = append(all, q)
		}
	}
	return all
}

func (r *Router) serveHub(w http.ResponseWriter, req *http.Request) {
	s := &stream{frames: make(chan []byte), ended: make(chan struct{})}
	if err := json.NewDecoder(http.MaxBytesReader(w, req.Body, maxStored)).Decode(&s.stored); err != nil {
		answer(w, atelier.Errorf(atelier.Invalid, "what the hub has cannot be read: %w", err))
		return
	}
	r.streaming.Lock()
	r.mu.Lock()
	before := r.stream
	r.stream = s
	r.mu.Unlock()
	if before != nil {
		close(before.ended)
	}
	for _, q := range r.upstream() {
		if err := q.sender.Connected(s.stored); err != nil {
			r.opts.Log.Warn("cannot note what messages the hub has", "error", err)
		}
	}
	r.streaming.Unlock()
	defer r.leave(s)
	out := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	if out.Flush() != nil {
		return
	}
	for {
		var frame []byte
		select {
		case frame = <-s.frames:
		case <-s.ended:
			return
		case <-req.Context().Done():
			return
		case <-r.ctx.Done():
			return
		}
		if _, err := w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(frame)))); err != nil {
			return
		}
		if _, err := w.Write(frame); err != nil || out.Flush() != nil {
			return
		}
	}
}

// leave ends a stream, unless another one took its place.
func (r *Router) leave(s *stream) {
	r.streaming.Lock()
	defer r.streaming.Unlock()
	r.mu.Lock()
	mine := r.stream == s
	if mine {
		r.stream = nil
	}
	r.mu.Unlock()
	if !mine {
		return
	}
	close(s.ended)
	for _, q := range r.upstream() {
		q.sender.Disconnected()
	}
}

// Publish implements spool.Publisher: it hands a frame to the agent.
func (r *Router) Publish(ctx context.Context, _ wire.Channel, frame []byte) error {
	r.mu.Lock()
	s := r.stream
	r.mu.Unlock()
	if s == nil {
		return errAway
	}
	select {
	case s.frames <- frame:
		return nil
	case <-s.ended:
		return errAway
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errAway = atelier.Errorf(atelier.Unavailable, "the agent has no connection to the hub")
