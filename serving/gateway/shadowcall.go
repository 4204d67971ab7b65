package gateway

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/compare"
	"github.com/atelier-edge/atelier/serving/grpc"
)

// inferCall is the one call of which shadows get copies.
const inferCall = "/inference.GRPCInferenceService/ModelInfer"

// maxCall is the largest message of a call that is copied.
const maxCall = 1 << 20

// overheard is a call that passes and of which a shadow may get a copy.
type overheard struct {
	shadow           *shadow
	trial            *trial
	request, message held
	leave            func()
}

// held keeps what passes, as long as that is not too much.
type held struct {
	mu   sync.Mutex // a request's body may still be read when the answer is there
	b    []byte
	most int
	over bool
}

func (h *held) add(p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over = h.over || len(h.b)+len(p) > h.most; !h.over {
		h.b = append(h.b, p...)
	}
}

// take returns what passed, false where that was too much. Nothing is added any more.
func (h *held) take() ([]byte, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	whole := !h.over
	h.over = true
	return h.b, whole
}

// overhear notes a call on a route that has a shadow; nil where no copy of it is wanted.
func (g *Gateway) overhear(r *http.Request, on *route) *overheard {
	t := on.shadow()
	if t == nil || r.URL.Path != inferCall {
		return nil
	}
	s := t.backend.shadow.Load()
	if s == nil {
		return nil
	}
	o := &overheard{shadow: s, trial: t, request: held{most: maxCall}, message: held{most: maxWhole}, leave: s.enter()}
	if !t.split.Samples(g.random()) {
		o.trial = nil // it only counts as in progress
	}
	return o
}

// end offers a copy of the call, which was answered with a status in that time.
func (o *overheard) end(id string, status int, took time.Duration) {
	if o == nil {
		return
	}
	o.leave()
	if o.trial == nil || status >= 500 || status == statusGone || status == http.StatusTooManyRequests {
		return // there is nothing to compare with
	}
	request, whole := o.request.take()
	answer, answered := o.message.take()
	message, err := grpc.Message(request)
	if !whole || !answered || err != nil {
		o.shadow.dropped.Add(1)
		return
	}
	if compare.NamesVersion(message) { // it is for that version, and no other
		return
	}
	given := compare.Answer{Status: status, Type: compare.TypeGRPC}
	if status == http.StatusOK {
		if given.Body, err = grpc.Message(answer); err != nil {
			o.shadow.dropped.Add(1)
			return
		}
	}
	o.shadow.offer(&copied{
		request: request, call: true, method: http.MethodPost, path: inferCall, id: id,
		tolerance: o.trial.split.Tolerance, given: given, took: took,
	})
}

// heard is a body that is held while it is read.
type heard struct {
	io.ReadCloser
	held *held
}

// Read implements io.Reader.
func (h *heard) Read(p []byte) (int, error) {
	n, err := h.ReadCloser.Read(p)
	h.held.add(p[:n])
	return n, err
}

// call sends a copy of a call to the shadow's module. It ends soon after stop is closed.
func (s *shadow) call(c *copied, stop chan struct{}) (a compare.Answer, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), copyTime)
	defer cancel()
	finished, watched := make(chan struct{}), make(chan struct{})
	go func() { // ends with the call
		defer close(watched)
		select {
		case <-finished:
			return
		case <-stop:
		}
		select {
		case <-finished:
		case <-time.After(drainPatience):
			cancel()
		}
	}()
	defer func() { close(finished); <-watched }()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://module"+c.path, bytes.NewReader(c.request))
	if err != nil {
		return a, false
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	req.Header.Set(atelier.HeaderRequestID, c.id)
	resp, err := s.backend.calls().RoundTrip(req)
	if err != nil {
		return a, false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxWhole+1))
	if err != nil || len(body) > maxWhole {
		return a, false
	}
	status := resp.Header.Get(grpc.StatusField)
	if status == "" {
		status = resp.Trailer.Get(grpc.StatusField)
	}
	a = compare.Answer{Status: grpc.HTTPStatus(status), Type: compare.TypeGRPC}
	if a.Status == http.StatusOK {
		if a.Body, err = grpc.Message(body); err != nil {
			return a, false
		}
	}
	return a, true
}
