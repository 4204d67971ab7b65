package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/http1"
	"github.com/atelier-edge/atelier/serving/lending"
)

// borrower is a module that answers on lent connections too. It takes every POST.
type borrower struct {
	atelier.Backend
	*lending.Borrower
	server *http.Server
	lent   atomic.Int64 // requests answered on lent connections
	passed atomic.Int64 // requests that the gateway passed on
	begun  chan struct{}
	ended  chan error // why a request on /wait ended
	open   chan struct{}
}

// Takes implements lending.Handler.
func (m *borrower) Takes(r *http1.Request, _ []byte) bool { return http1.Is(r.Method, "post") }

// Answer implements lending.Handler.
func (m *borrower) Answer(ctx context.Context, r *lending.Request) lending.Answer {
	m.lent.Add(1)
	switch string(r.Path) {
	case "/panic":
		panic("as asked")
	case "/wait":
		m.begun <- struct{}{}
		select {
		case <-m.open:
		case <-ctx.Done():
			m.ended <- context.Cause(ctx)
		}
	}
	return lending.Answer{Status: 200, ContentType: "text/plain", Fields: fmt.Appendf(nil, "X-Id: %s\r\n", r.ID), Body: append([]byte(m.Rollout+" "), r.Body...)}
}

// borrows starts a module that takes lent connections.
func (d *device) borrows(name string) *borrower {
	d.t.Helper()
	m := &borrower{begun: make(chan struct{}, 16), ended: make(chan error, 16), open: make(chan struct{})}
	m.Backend, m.server = d.module(name, func(w http.ResponseWriter, r *http.Request) {
		m.passed.Add(1)
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		_, _ = fmt.Fprintf(w, "%s %s", m.Rollout, body)
	})
	m.Borrower = lending.NewBorrower(m, slog.New(slog.DiscardHandler))
	l, err := lending.Listen(filepath.Join(d.dir, name) + lending.Suffix)
	if err != nil {
		d.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- m.Serve(l) }()
	d.t.Cleanup(func() {
		if err := errors.Join(m.Shutdown(context.Background()), <-done); err != nil {
			d.t.Error(err)
		}
	})
	return m
}

// keeping is a client that keeps its connection.
type keeping struct {
	net.Conn
	r *bufio.Reader
}

func (d *device) keeping() *keeping {
	d.t.Helper()
	conn, err := net.Dial("tcp", d.addr)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = conn.Close() })
	return &keeping{conn, bufio.NewReader(conn)}
}

func post(path, key, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: a\r\nX-Api-Key: %s\r\nContent-Length: %d\r\n\r\n%s", path, key, len(body), body)
}

// read reads one answer.
func (k *keeping) read() (*http.Response, string, error) {
	if err := k.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, "", err
	}
	resp, err := http.ReadResponse(k.r, nil)
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

func (k *keeping) ask(text string) (*http.Response, string, error) {
	if _, err := io.WriteString(k, text); err != nil {
		return nil, "", err
	}
	return k.read()
}

// lent returns a client whose connection is with m.
func (d *device) lent(m *borrower) *keeping {
	d.t.Helper()
	k := d.keeping()
	d.untilLent(k, m)
	return k
}

// untilLent sends requests until m answers one itself, and returns how many.
func (d *device) untilLent(k *keeping, m *borrower) (n uint64) {
	d.t.Helper()
	for before := m.lent.Load(); m.lent.Load() == before; n++ {
		if resp, body, err := k.ask(post("/e/x", key, "hello")); err != nil || resp.StatusCode != 200 || body != m.Rollout+" hello" {
			d.t.Fatalf("%v %q %v", resp, body, err)
		}
	}
	return n
}

// counted waits until the counts of rollout are those that are wanted.
func (d *device) counted(rollout string, want map[string]uint64) {
	d.t.Helper()
	var c atelier.EndpointCounters
	defer func() {
		if d.t.Failed() {
			d.t.Logf("the last counts: %+v, want %v", c, want)
		}
	}()
	until(d.t, "all is counted", func() bool {
		for _, c = range d.Status().Counters {
			if c.Rollout != rollout {
				continue
			}
			var buckets, requests uint64
			for _, n := range c.Buckets {
				buckets += n
			}
			same := c.InFlight == 0 && len(c.Requests) == len(want)
			for class, n := range want {
				requests += n
				same = same && c.Requests[class] == n
			}
			return same && buckets == requests
		}
		return false
	})
}

func TestLent(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{MaxBody: 200 << 10})
	m := d.borrows("a")
	d.lead(m.Backend)
	k := d.keeping()
	ids := map[string]bool{}
	ask := func(text string, status int, want string) *http.Response {
		t.Helper()
		resp, body, err := k.ask(text)
		if err != nil || resp.StatusCode != status || want != "" && body != m.Rollout+" "+want {
			t.Fatalf("%v %.80q %v", resp, body, err)
		}
		id := resp.Header.Get(atelier.HeaderRequestID)
		if id != "" && (ids[id] || !strings.HasPrefix(id, m.Rollout+"-") || len(id) != len(m.Rollout)+17) {
			t.Errorf("request id %q", id)
		}
		ids[id] = true
		return resp
	}
	for i := range 10 {
		resp := ask(post("/e/x", key, fmt.Sprint(i)), 200, fmt.Sprint(i))
		if inner := resp.Header.Get("X-Id"); i >= lendAfter && (inner == "" || inner != resp.Header.Get(atelier.HeaderRequestID) || resp.Header.Get("Date") == "") {
			t.Errorf("answer %d has fields %v", i, resp.Header)
		}
	}
	if m.passed.Load() != lendAfter || m.lent.Load() != 10-lendAfter {
		t.Errorf("%d were passed on, %d answered on the lent connection", m.passed.Load(), m.lent.Load())
	}
	// What a module does not answer on a lent connection the gateway has as ever.
	lent := m.lent.Load()
	large := strings.Repeat("x", 100<<10)
	ask(strings.Replace(post("/e/x", key, ""), "POST", "PUT", 1), 200, "")
	ask(post("/e/x", "other", "secondary key"), 200, "secondary key")
	ask(post("/e/x", "wrong", ""), 401, "")
	ask(post("/nothing", key, ""), 404, "")
	ask(post("/e/x", key, large), 200, large)
	ask("POST /e/x HTTP/1.1\r\nHost: a\r\nX-Api-Key: "+key+"\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 200, "abc")
	if m.lent.Load() != lent {
		t.Errorf("%d unusual requests were answered by the module itself", m.lent.Load()-lent)
	}
	d.counted(m.Rollout, map[string]uint64{"2xx": 14, "4xx": 1})
	// Requests that come at once are answered in turn, on both sides of a loan.
	const together = 20
	var all, unusual strings.Builder
	for i := range together {
		all.WriteString(post("/e/x", key, fmt.Sprint(i)))
		unusual.WriteString(post("/e/x", []string{key, "other"}[i/10%2], fmt.Sprint(i)))
	}
	for _, text := range []string{all.String(), unusual.String()} {
		if _, err := io.WriteString(k, text); err != nil {
			t.Fatal(err)
		}
		for i := range together {
			if resp, body, err := k.read(); err != nil || resp.StatusCode != 200 || body != fmt.Sprint(m.Rollout, " ", i) {
				t.Fatalf("answer %d: %v %q %v", i, resp, body, err)
			}
		}
	}
	d.counted(m.Rollout, map[string]uint64{"2xx": 14 + 2*together, "4xx": 1})
	// What is malformed is refused by the gateway, in its own form.
	k = d.lent(m)
	resp, body, err := k.ask("POST /e/x HTTP/1.1\r\nHost: a\r\nX-Api-Key: " + key + "\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na")
	if err != nil || resp.StatusCode != 400 || !resp.Close || !strings.Contains(body, `"code":"invalid"`) {
		t.Errorf("malformed: %v %q %v", resp, body, err)
	}
	// A body that is too large is refused before it has come.
	k = d.lent(m)
	resp, _, err = k.ask(fmt.Sprintf("POST /e/x HTTP/1.1\r\nHost: a\r\nX-Api-Key: %s\r\nContent-Length: %d\r\n\r\n", key, 201<<10))
	if err != nil || resp.StatusCode != 413 {
		t.Errorf("too large: %v %v", resp, err)
	}
}

// Once a table is in force, no request is answered by the one before, on lent
// connections either.
func TestLentKeyChanges(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	m := d.borrows("a")
	for range 20 {
		d.lead(m.Backend)
		k := d.lent(m)
		d.seq++
		if err := d.Apply(atelier.RouteTable{Sequence: d.seq, Routes: []atelier.Route{{
			Endpoint: "e", Keys: atelier.EndpointKeys{Primary: keyHash("new")}, Backend: m.Backend,
		}}}); err != nil {
			t.Fatal(err)
		}
		before := m.lent.Load()
		if resp, body, err := k.ask(post("/e/x", key, "")); err != nil || resp.StatusCode != 401 || m.lent.Load() != before {
			t.Fatalf("the old key after the change: %v %q %v", resp, body, err)
		}
		if resp, _, err := k.ask(post("/e/x", "new", "")); err != nil || resp.StatusCode != 200 {
			t.Fatalf("the new key on the same connection: %v %v", resp, err)
		}
		d.seq++
		if err := d.Apply(atelier.RouteTable{Sequence: d.seq}); err != nil {
			t.Fatal(err)
		}
		if resp, _, err := k.ask(post("/e/x", "new", "")); err != nil || resp.StatusCode != 404 {
			t.Fatalf("after the route went: %v %v", resp, err)
		}
	}
}

// Versions change at saturation, with all connections lent; each module ends as
// soon as nothing is in flight. No request fails, and each is counted once.
func TestLentSwitchDropsNothing(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	m := d.borrows("v0")
	d.lead(m.Backend)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	answered := map[string]uint64{}
	total := func() (n uint64) {
		mu.Lock()
		defer mu.Unlock()
		for _, a := range answered {
			n += a
		}
		return n
	}
	for i := range 8 {
		k := d.keeping()
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				text := fmt.Sprint(i, n)
				resp, body, err := k.ask(post("/e/x", key, text))
				if err != nil || resp.StatusCode != 200 || !strings.HasSuffix(body, " "+text) {
					t.Errorf("request %s: %v %q %v", text, resp, body, err)
					return
				}
				rollout, _, _ := strings.Cut(body, " ")
				if !strings.HasPrefix(resp.Header.Get(atelier.HeaderRequestID), rollout+"-") {
					t.Errorf("%s answered under the id %s", rollout, resp.Header.Get(atelier.HeaderRequestID))
				}
				mu.Lock()
				answered[rollout]++
				mu.Unlock()
			}
		})
	}
	modules := []*borrower{m}
	for i := 1; i <= 10; i++ {
		mark, lent := total(), m.lent.Load()
		until(t, "requests pass", func() bool { return total() > mark+200 && m.lent.Load() > lent+50 || t.Failed() })
		next := d.borrows(fmt.Sprintf("v%d", i))
		d.lead(next.Backend)
		until(t, "the former one is idle", func() bool {
			for _, c := range d.Status().Counters {
				if c.Rollout == m.Rollout {
					return c.InFlight == 0
				}
			}
			return true
		})
		before := m.lent.Load() + m.passed.Load()
		if err := errors.Join(m.server.Close(), m.Shutdown(t.Context())); err != nil {
			t.Fatal(err)
		}
		if after := m.lent.Load() + m.passed.Load(); after != before {
			t.Errorf("%s answered %d requests after nothing was in flight", m.Rollout, after-before)
		}
		modules, m = append(modules, next), next
	}
	until(t, "the last one has connections", func() bool { return m.lent.Load() > 0 || t.Failed() })
	stop()
	wg.Wait()
	for _, m := range modules {
		d.counted(m.Rollout, map[string]uint64{"2xx": answered[m.Rollout]})
		if m.lent.Load() == 0 {
			t.Errorf("no connection was lent to %s", m.Rollout)
		}
	}
}

func TestLentUnanswered(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{Times: Times{Answer: 300 * time.Millisecond}})
	m := d.borrows("a")
	d.lead(m.Backend)
	k := d.keeping()
	var good uint64
	// The connection goes on after each of them; what came with the request is not lost.
	for path, want := range map[string]int{"/e/wait": 504, "/e/panic": 502} {
		good += d.untilLent(k, m) + 1
		resp, body, err := k.ask(post(path, key, "") + post("/e/x", key, "next"))
		if err != nil || resp.StatusCode != want || resp.Header.Get(atelier.HeaderRequestID) == "" || !strings.Contains(body, "module of endpoint e") {
			t.Errorf("%s: %v %q %v", path, resp, body, err)
		}
		if resp, body, err := k.read(); err != nil || resp.StatusCode != 200 || body != m.Rollout+" next" {
			t.Errorf("after %s: %v %q %v", path, resp, body, err)
		}
	}
	<-m.begun
	if err := <-m.ended; !strings.Contains(err.Error(), "too long") {
		t.Errorf("the request was cancelled because %v", err)
	}
	d.counted(m.Rollout, map[string]uint64{"2xx": good, "5xx": 2})
	// A client that gives up frees the module.
	good += d.untilLent(k, m)
	if _, err := io.WriteString(k, post("/e/wait", key, "")); err != nil {
		t.Fatal(err)
	}
	<-m.begun
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-m.ended; !strings.Contains(err.Error(), "gave up") {
		t.Errorf("the request was cancelled because %v", err)
	}
	d.counted(m.Rollout, map[string]uint64{"2xx": good, "4xx": 1, "5xx": 2})
}

// A gateway that ends finishes what is in progress on lent connections, and closes
// them.
func TestLentDrain(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	m := d.borrows("a")
	d.lead(m.Backend)
	idle, busy := d.lent(m), d.lent(m)
	if _, err := io.WriteString(busy, post("/e/wait", key, "last")); err != nil {
		t.Fatal(err)
	}
	<-m.begun
	done := make(chan struct{})
	go func() { d.drain(); close(done) }()
	if _, err := idle.r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the idle connection: %v", err)
	}
	select {
	case <-done:
		t.Fatal("drained with a request in progress")
	default:
	}
	close(m.open)
	if resp, body, err := busy.read(); err != nil || resp.StatusCode != 200 || body != m.Rollout+" last" {
		t.Errorf("the last answer: %v %q %v", resp, body, err)
	}
	<-done
	if _, err := busy.r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last answer: %v", err)
	}
}

// A connection that is idle comes back, and a module that ends loses none.
func TestLentComesBack(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{Times: Times{Idle: 200 * time.Millisecond}})
	m := d.borrows("a")
	d.lead(m.Backend)
	k := d.lent(m)
	if _, err := k.r.ReadByte(); !errors.Is(err, io.EOF) { // the gateway's own limit is the same, and counts anew
		t.Errorf("an idle connection: %v", err)
	}
	d2 := newDevice(t, Options{})
	m2 := d2.borrows("b")
	d2.lead(m2.Backend)
	k = d2.lent(m2)
	if err := m2.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := m2.passed.Load()
	for range 10 {
		if resp, body, err := k.ask(post("/e/x", key, "passed on")); err != nil || resp.StatusCode != 200 || body != m2.Rollout+" passed on" {
			t.Fatalf("after lending ended: %v %q %v", resp, body, err)
		}
	}
	if m2.passed.Load() != before+10 {
		t.Errorf("%d requests were passed on, want 10", m2.passed.Load()-before)
	}
}
