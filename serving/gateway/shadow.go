package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/compare"
	"github.com/atelier-edge/atelier/serving/http1"
)

// Bounds of what a shadow takes.
const (
	maxCopies     = 32      // that wait for a shadow
	maxCopiesSize = 4 << 20 // bytes of them
	copyTime      = 10 * time.Second
	// restFor is how long an endpoint must be without requests to count as resting: a client
	// that has its answer sends the next request sooner.
	restFor = 5 * time.Millisecond
	// busyShare is which part of the time copies may take of an endpoint that does not
	// rest, 1/busyShare. So few requests meet a copy that the 99th percentile does not know.
	busyShare = 200
	// drainPatience is how long a copy in progress may take when the gateway ends.
	drainPatience = time.Second
)

// shadow sends copies of requests to a backend, one at a time, and compares its answers
// with those that were given. Whoever offers a copy never waits.
type shadow struct {
	backend *backend
	queue   chan *copied
	size    atomic.Int64 // bytes in the queue
	live    atomic.Int64 // requests of the endpoint in progress
	last    atomic.Int64 // when the last of them ended, in nanoseconds since the gateway's start
	began   time.Time

	compared, disagreed, dropped, errors atomic.Uint64

	mu           sync.Mutex
	served, took latency
	samples      []atelier.Disagreement // the newest last
	stop         chan struct{}          // nil while nobody works
	ended        bool                   // the gateway ends
	workers      sync.WaitGroup
}

// latency counts how long something took.
type latency struct {
	buckets []uint64
	seconds float64
}

func (l *latency) add(d time.Duration) {
	if l.buckets == nil {
		l.buckets = make([]uint64, len(atelier.LatencyBounds)+1)
	}
	l.buckets[bucketOf(d)]++
	l.seconds += d.Seconds()
}

func newShadow(b *backend, began time.Time) *shadow {
	return &shadow{backend: b, queue: make(chan *copied, maxCopies), began: began}
}

// copied is a request that was answered, and how.
type copied struct {
	request   []byte // as it is sent
	call      bool   // of gRPC; request is its body then
	method    string
	path      string
	id        string
	tolerance atelier.Tolerance
	given     compare.Answer
	took      time.Duration
}

func (c *copied) size() int64 { return int64(len(c.request) + len(c.given.Body)) }

// enter notes a request of the endpoint in progress; leave, which it returns, its end.
func (s *shadow) enter() (leave func()) {
	s.live.Add(1)
	return func() {
		s.last.Store(int64(time.Since(s.began)))
		s.live.Add(-1)
	}
}

// offer takes a copy, or drops it where there is no room.
func (s *shadow) offer(c *copied) {
	if s.size.Add(c.size()) > maxCopiesSize || !s.work() {
		s.size.Add(-c.size())
		s.dropped.Add(1)
		return
	}
	select {
	case s.queue <- c:
	default:
		s.size.Add(-c.size())
		s.dropped.Add(1)
	}
}

// work sees to it that somebody works off the queue; false where nobody may any more.
func (s *shadow) work() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop == nil && !s.ended {
		stop := make(chan struct{})
		s.stop = stop
		s.workers.Go(func() { s.run(stop) }) // ends after rest; end waits for it
	}
	return !s.ended
}

// rest tells who works to end, until there is a copy again. What waits is dropped.
func (s *shadow) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil {
		close(s.stop)
		s.stop = nil
	}
}

// end ends the work for good and waits for it.
func (s *shadow) end() {
	s.rest()
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.workers.Wait()
}

func (s *shadow) run(stop chan struct{}) {
	next := time.Now().Add(busyShare * restFor) // when a copy may be sent although the endpoint does not rest
	for {
		select {
		case <-stop:
			s.empty()
			return
		case c := <-s.queue:
			s.size.Add(-c.size())
			if !s.await(stop, next) {
				s.dropped.Add(1)
				continue // stop is closed
			}
			began := time.Now()
			s.try(c, stop)
			next = time.Now().Add((busyShare - 1) * time.Since(began))
		}
	}
}

// empty drops what waits.
func (s *shadow) empty() {
	for {
		select {
		case c := <-s.queue:
			s.size.Add(-c.size())
			s.dropped.Add(1)
		default:
			return
		}
	}
}

// await returns when the endpoint rests, or at next; false where stop is closed first.
func (s *shadow) await(stop chan struct{}, next time.Time) bool {
	timer := time.NewTimer(restFor)
	defer timer.Stop()
	for {
		rests := s.live.Load() == 0 && time.Since(s.began)-time.Duration(s.last.Load()) >= restFor
		if rests || !time.Now().Before(next) {
			return true
		}
		select {
		case <-stop:
			return false
		case <-timer.C:
			timer.Reset(restFor)
		}
	}
}

// try sends a copy and compares the answer.
func (s *shadow) try(c *copied, stop chan struct{}) {
	sent := time.Now()
	answer, ok := s.ask(c, stop)
	took := time.Since(sent)
	if !ok || answer.Status >= 500 || answer.Status == http.StatusTooManyRequests {
		s.errors.Add(1)
		return
	}
	difference := compare.Difference(&c.given, &answer, c.tolerance)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.served.add(c.took)
	s.took.add(took)
	if difference != "" {
		s.disagreed.Add(1)
		if len(s.samples) == atelier.MaxDisagreements {
			s.samples = append(s.samples[:0:0], s.samples[1:]...) // the old ones may be being read
		}
		s.samples = append(s.samples, atelier.Disagreement{
			Request: c.id, Time: time.Now().UTC().Truncate(time.Millisecond), Path: excerpt([]byte(c.path)), Difference: excerpt([]byte(difference)),
			Served: c.excerpt(c.given.Body), Shadow: c.excerpt(answer.Body),
		})
	}
	s.compared.Add(1)
}

// excerpt is what is shown of an answer to the copy's request; a message of gRPC is nothing
// to read.
func (c *copied) excerpt(b []byte) string {
	if c.call {
		return fmt.Sprintf("a message of %d bytes", len(b))
	}
	return excerpt(b)
}

// excerpt returns the beginning of an answer as text.
func excerpt(b []byte) string {
	if len(b) > atelier.MaxDisagreeDetail {
		b = b[:atelier.MaxDisagreeDetail]
	}
	return strings.ToValidUTF8(string(b), "�")
}

// ask sends a copy to the shadow's module and returns the answer.
func (s *shadow) ask(c *copied, stop chan struct{}) (a compare.Answer, ok bool) {
	if c.call {
		return s.call(c, stop)
	}
	for {
		m, reused, err := s.backend.get()
		if err != nil {
			return a, false
		}
		a, ok = s.exchange(c, m, stop)
		if ok || !reused {
			return a, ok
		}
	}
}

// exchange sends a copy over a connection. It ends soon after stop is closed.
func (s *shadow) exchange(c *copied, m *backendConn, stop chan struct{}) (a compare.Answer, ok bool) {
	finished, watched := make(chan struct{}), make(chan struct{})
	hurried := false
	go func() { // ends with the exchange
		defer close(watched)
		select {
		case <-finished:
		case <-stop:
			hurried = true
			_ = m.SetDeadline(time.Now().Add(drainPatience)) // fails only with the connection
		}
	}()
	clean := false
	defer func() {
		close(finished)
		<-watched
		if clean && !hurried {
			s.backend.put(m)
		} else {
			_ = m.Close() // something may still be on its way
		}
	}()
	m.MustWrite(copyTime)
	if _, err := m.Write(c.request); err != nil {
		return a, false
	}
	m.MustRead(copyTime)
	var resp http1.Response
	for resp.Status < 200 {
		head, err := http1.ReadHead(m.r, func() {})
		if err != nil {
			return a, false
		}
		raw := append([]byte(nil), head...)
		_, _ = m.r.Discard(len(head)) // it is in the buffer
		if err := http1.ParseResponse(raw, []byte(c.method), &resp); err != nil || resp.Status == http.StatusSwitchingProtocols {
			return a, false
		}
	}
	body := http1.NewBodyReader(m.r, resp.Body, -1)
	data, err := io.ReadAll(io.LimitReader(body, maxWhole+1))
	if err != nil {
		return a, false
	}
	clean = resp.KeepAlive && len(data) <= maxWhole
	return answerOf(&resp, data), true
}

// answerOf returns what is compared of an answer.
func answerOf(resp *http1.Response, body []byte) compare.Answer {
	return compare.Answer{
		Status: resp.Status, Type: string(fieldOf(resp.Fields, "Content-Type")),
		HeaderLength: string(fieldOf(resp.Fields, "Inference-Header-Content-Length")), Body: body,
	}
}

// report returns what was counted.
func (s *shadow) report() *atelier.ShadowReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &atelier.ShadowReport{
		Compared: s.compared.Load(), Disagreed: s.disagreed.Load(), Dropped: s.dropped.Load(), Errors: s.errors.Load(),
		Served: append([]uint64(nil), s.served.buckets...), Shadow: append([]uint64(nil), s.took.buckets...),
		ServedSeconds: s.served.seconds, ShadowSeconds: s.took.seconds, Samples: s.samples,
	}
}

// shadowing returns the shadow that shall get a copy of the exchange's request, nil where
// none shall.
func (x *exchange) shadowing(r *route) *shadow {
	t := r.shadow()
	if t == nil || !http1.Is(x.req.Method, "post") {
		return nil
	}
	if _, named := versionIn(x.path); named { // it is for that version, and no other
		return nil
	}
	return t.backend.shadow.Load()
}

// copyTo offers a copy of the request, which was answered, to a shadow.
func (x *exchange) copyTo(s *shadow, t *trial) {
	if x.resp.Status >= 500 || x.resp.Status == http.StatusTooManyRequests {
		return // there is nothing to compare with
	}
	if !t.split.Samples(x.g.random()) {
		return
	}
	if !x.whole || x.answered == nil {
		s.dropped.Add(1)
		return
	}
	s.offer(&copied{
		request: x.appendRequest(nil, http1.Framing{Length: int64(len(x.body))}), method: string(x.req.Method), path: string(x.path), id: x.id,
		tolerance: t.split.Tolerance, given: answerOf(&x.resp, append([]byte(nil), x.answered...)), took: x.took,
	})
}
