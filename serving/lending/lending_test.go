package lending

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/http1"
)

var terms = Terms{
	Version: version, Endpoint: "e", Rollout: "r", MaxBody: 1 << 20,
	Answer: 30 * time.Second, Write: 30 * time.Second, Idle: 30 * time.Second, Bounds: atelier.LatencyBounds,
}

const key = "secret"

var keySum = sha256.Sum256([]byte(key))

// echo takes every POST and answers with its body.
type echo struct{ bodies chan string }

func (echo) Takes(r *http1.Request, _ []byte) bool { return http1.Is(r.Method, "post") }

func (e echo) Answer(_ context.Context, r *Request) Answer {
	if e.bodies != nil {
		e.bodies <- string(r.Path) + " " + string(r.Body)
	}
	return Answer{Status: 200, ContentType: "text/plain", Body: append([]byte(nil), r.Body...)}
}

// borrowerOf starts a Borrower and returns the path of its socket.
func borrowerOf(t testing.TB, h Handler) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m"+Suffix)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v, %v", info.Mode(), err)
	}
	b := NewBorrower(h, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- b.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(b.Shutdown(context.Background()), <-done); err != nil {
			t.Error(err)
		}
	})
	return path
}

// pair returns the two ends of a TCP connection.
func pair(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.Close(), s.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// descriptor returns another descriptor of c, which stays open until the test ends.
func descriptor(t testing.TB, c *net.TCPConn) (fd int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) }), err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// strange is a module that tests play: the other end of a Lender's channel.
type strange struct {
	*Lender
	conn *net.UnixConn
	page *page
}

func newStrange(t *testing.T, terms Terms) *strange {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	lender, err := Dial(path, terms)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		<-lender.Ended()
	})
	f, file, err := receive(conn, make([]byte, maxFrame))
	if err != nil || f.kind != kindHello || f.terms.Rollout != "r" {
		t.Fatalf("%+v, %v", f, err)
	}
	defer file.Close()
	p, err := mapPage(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.unmap)
	return &strange{lender, conn, p}
}

// lend lends a connection, which the module picks up.
func (s *strange) lend(t *testing.T) *Loan {
	t.Helper()
	_, server := pair(t)
	loan, err := s.Lend(descriptor(t, server), keySum, []byte("POST "), []byte("/"))
	if err != nil {
		t.Fatal(err)
	}
	f, file, err := receive(s.conn, make([]byte, maxFrame))
	if err != nil || f.kind != kindLend || f.slot != loan.slot || f.key != keySum || string(f.bytes) != "POST /" {
		t.Fatalf("%+v, %v", f, err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	return loan
}

// A module that dies leaves in the page how far it was with each connection.
func TestModuleDies(t *testing.T) {
	t.Parallel()
	m := newStrange(t, terms)
	for i := range 6 {
		m.page.record(100*i, time.Millisecond, terms.Bounds)
	}
	want := map[uint32]Return{
		idle: {Outcome: Unused}, handed: {Outcome: Untouched}, whole: {Outcome: Unmet},
		taken: {Outcome: Unmet, Partial: true}, answering: {Outcome: Torn}, 99: {Outcome: Torn},
	}
	loans := map[uint32]*Loan{}
	for state := range want {
		loans[state] = m.lend(t)
		m.page.slots[loans[state].slot].state.Store(state)
		m.page.slots[loans[state].slot].answered.Store(state)
	}
	if c := m.Counts(); c.InFlight != len(want)-1 {
		t.Errorf("%d are in flight, want %d", c.InFlight, len(want)-1)
	}
	if err := m.conn.Close(); err != nil {
		t.Fatal(err)
	}
	for state, loan := range loans {
		got := loan.Wait()
		if got.Outcome != want[state].Outcome || got.Partial != want[state].Partial || got.Answered != int(state) || got.Since.Before(loan.begun) {
			t.Errorf("state %d: %+v, want %+v", state, got, want[state])
		}
	}
	<-m.Ended()
	if c := m.Counts(); c.InFlight != 0 || c.Requests != [6]uint64{0, 1, 1, 1, 1, 1} || c.Nanos != 6e6 {
		t.Errorf("the last counts are %+v", c)
	}
	if _, err := m.Lend(0, keySum); atelier.CodeOf(err) != atelier.Unavailable {
		t.Errorf("Lend after the end: %v", err)
	}
}

// A gateway believes nothing that a module may not say, and closes what is lent to it.
func TestGarbledModule(t *testing.T) {
	t.Parallel()
	for name, packet := range map[string][]byte{
		"no kind known":  {'x', 1, 2, 3},
		"too short":      {kindBack, 0},
		"another's slot": appendBack(nil, 5, Back, nil),
		"no such slot":   appendBack(nil, MaxLoans, Back, nil),
		"no outcome":     appendBack(nil, 0, Torn, nil),
		"a gateway's":    appendLend(nil, 0, &keySum),
		"too large":      make([]byte, maxFrame+1),
	} {
		m := newStrange(t, terms)
		quiet, busy := m.lend(t), m.lend(t)
		m.page.slots[quiet.slot].state.Store(idle)
		m.page.slots[busy.slot].state.Store(whole)
		m.page.slots[busy.slot].since.Store(1 << 62)
		if err := send(m.conn, packet, -1); err != nil {
			t.Fatal(err)
		}
		if a, b := quiet.Wait(), busy.Wait(); a.Outcome != Closed || b.Outcome != Torn || b.Since.After(time.Now()) {
			t.Errorf("%s: %+v and %+v", name, a, b)
		}
	}
	m := newStrange(t, terms) // with a descriptor
	loan := m.lend(t)
	if err := send(m.conn, appendBack(nil, loan.slot, Back, nil), 0); err != nil {
		t.Fatal(err)
	}
	if r := loan.Wait(); r.Outcome != Torn {
		t.Errorf("with a descriptor: %+v", r)
	}
}

// A module that does nothing at all loses what is lent to it.
func TestIdleModule(t *testing.T) {
	t.Parallel()
	impatient := terms
	impatient.Answer, impatient.Write, impatient.Idle = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
	m := newStrange(t, impatient)
	between, before := m.lend(t), m.lend(t)
	m.page.slots[between.slot].state.Store(idle)
	if a, b := between.Wait(), before.Wait(); a.Outcome != Closed || b.Outcome != Torn {
		t.Errorf("%+v and %+v", a, b)
	}
}

// A module that ends does not wait for a gateway that has said nothing yet.
func TestSilentGateway(t *testing.T) {
	t.Parallel()
	var silent net.Conn
	t.Run("ends", func(t *testing.T) { // with the borrower's Shutdown
		var err error
		if silent, err = net.Dial("unixpacket", borrowerOf(t, echo{})); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) { // it may not have been accepted yet
		t.Errorf("the channel goes on: %v", err)
	}
	_ = silent.Close()
}

// A module does not follow a gateway that talks nonsense, and closes what it has.
func TestGarbledGateway(t *testing.T) {
	t.Parallel()
	path := borrowerOf(t, echo{})
	hello, err := appendHello(nil, &terms)
	if err != nil {
		t.Fatal(err)
	}
	other := terms
	other.Version++
	newer, err := appendHello(nil, &other)
	if err != nil {
		t.Fatal(err)
	}
	_, file, err := newPage()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unsealed, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer unsealed.Close()
	type packet struct {
		bytes []byte
		fd    int
	}
	page := int(file.Fd())
	for name, packets := range map[string][]packet{
		"no hello":           {{[]byte{kindRecall}, -1}},
		"no page":            {{hello, -1}},
		"no memory":          {{hello, int(unsealed.Fd())}},
		"another version":    {{newer, page}},
		"no terms":           {{[]byte("h{}"), page}},
		"two hellos":         {{hello, page}, {hello, page}},
		"no connection":      {{hello, page}, {appendLend(nil, 0, &keySum), page}},
		"no descriptor":      {{hello, page}, {appendLend(nil, 0, &keySum), -1}},
		"no such slot":       {{hello, page}, {appendLend(nil, MaxLoans, &keySum), 0}},
		"a module's own":     {{hello, page}, {appendBack(nil, 0, Back, nil), -1}},
		"nothing understood": {{hello, page}, {[]byte("what?"), -1}},
	} {
		conn, err := net.Dial("unixpacket", path)
		if err != nil {
			t.Fatal(err)
		}
		client, server := pair(t)
		for i, p := range packets {
			if i == len(packets)-1 && i > 0 { // something is lent by then
				if err := send(conn.(*net.UnixConn), appendLend(nil, 7, &keySum), descriptor(t, server)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if err := send(conn.(*net.UnixConn), p.bytes, p.fd); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Read(make([]byte, 100)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: the channel goes on: %v", name, err)
		}
		_ = conn.Close()
		_ = client.Close()
	}
	// Others are not disturbed by that.
	l, err := Dial(path, terms)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, server := pair(t)
	text := fmt.Sprintf("POST /e/x HTTP/1.1\r\nHost: a\r\nX-Api-Key: %s\r\nContent-Length: 2\r\n\r\nhi", key)
	if _, err := l.Lend(descriptor(t, server), keySum, []byte(text)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 1000)
	if n, err := client.Read(buffer); err != nil || n < 4 || string(buffer[n-2:n]) != "hi" {
		t.Errorf("%q, %v", buffer[:n], err)
	}
}
