package mqtt

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

func TestMatches(t *testing.T) {
	t.Parallel()
	for filter, topics := range map[string]string{
		"a/b": "a/b", "a/+": "a/b a/", "a/#": "a a/b a/b/c", "+/b": "a/b /b", "#": "a a/b", "+": "a", "a/+/c": "a/b/c",
	} {
		for _, topic := range []string{"a", "a/b", "a/", "a/b/c", "/b", "b"} {
			want := strings.Contains(" "+topics+" ", " "+topic+" ") || filter == "#" || filter == "+" && topic == "b" || filter == "a/#" && topic == "a/"
			if got := matches(filter, topic); got != want {
				t.Errorf("%s takes %s: %v", filter, topic, got)
			}
		}
	}
}

// peer is user u, who may use what begins with u/.
type peer struct {
	t testing.TB
	c *Conn
}

func (p *peer) own(topic string) error {
	if strings.HasPrefix(topic, "u/") {
		return nil
	}
	return atelier.Errorf(atelier.Forbidden, "it may not")
}
func (p *peer) MayPublish(topic string) error    { return p.own(topic) }
func (p *peer) MaySubscribe(filter string) error { return p.own(filter) }
func (p *peer) Subscribed()                      {}
func (p *peer) Closed()                          {}
func (p *peer) Publish(m Message, kept func(error)) {
	if p.own(m.Topic) != nil {
		p.t.Errorf("%s came through", m.Topic)
	}
	var err error
	if strings.HasSuffix(m.Topic, "full") {
		err = atelier.Errorf(atelier.NoSpace, "the disk is full")
	}
	kept(err)
}

// packet makes an MQTT packet of less than 128 bytes.
func packet(first byte, parts ...string) string {
	body := strings.Join(parts, "")
	return string([]byte{first, byte(len(body))}) + body
}

func text(s string) string { return string([]byte{byte(len(s) >> 8), byte(len(s))}) + s }

func connect(version byte, user, key string) string {
	properties := ""
	if version == 5 {
		properties = "\x00"
	}
	return packet(0x10, text("MQTT"), string([]byte{version, 0xc2, 0, 60}), properties, text("id"), text(user), text(key))
}

// pipes is a listener over pipes.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
}

func (l *pipes) Accept() (net.Conn, error) {
	c, ok := <-l.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (l *pipes) Close() error   { l.once.Do(func() { close(l.conns) }); return nil }
func (l *pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (l *pipes) talk(sent []byte, until string) []byte {
	ours, theirs := net.Pipe()
	l.conns <- theirs
	_ = ours.SetReadDeadline(time.Now().Add(20 * time.Second)) // a pipe has deadlines
	var got bytes.Buffer
	read := make(chan struct{})
	go func() { // ends with the connection
		defer close(read)
		b := make([]byte, 4096)
		for {
			n, err := ours.Read(b)
			got.Write(b[:n])
			if err != nil || until != "" && strings.Contains(got.String(), until) {
				return
			}
		}
	}()
	_, _ = ours.Write(sent) // the server may have closed it by then
	if until == "" {
		_ = ours.Close()
	}
	<-read
	_ = ours.Close()
	return got.Bytes()
}

func serve(t testing.TB) (*pipes, func()) {
	s := New(Options{MaxPacket: 4096, Clients: 8, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Admit: func(c *Conn, user, password string) (Peer, error) {
		if user != "u" || password != "key" {
			return nil, atelier.Errorf(atelier.Forbidden, "it may not")
		}
		return &peer{t, c}, nil
	}})
	l := &pipes{conns: make(chan net.Conn)}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	return l, func() {
		_ = l.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		s.Close()
	}
}

const (
	connack4 = "\x20\x02\x00\x00"
	pong     = "\xd0\x00"
)

func TestAnswers(t *testing.T) {
	t.Parallel()
	l, end := serve(t)
	defer end()
	for sent, want := range map[string]string{
		connect(4, "u", "key") + packet(0xc0):                                                     connack4 + pong,
		connect(4, "u", "key") + packet(0x32, text("u/x"), "\x00\x07", "p") + packet(0xc0):        "\x40\x02\x00\x07",
		connect(4, "u", "key") + packet(0x82, "\x00\x01", text("u/x"), "\x02", text("#"), "\x00"): connack4 + "\x90\x04\x00\x01\x01\x80",
		connect(5, "u", "key") + packet(0x32, text("v/x"), "\x00\x07", "\x00", "p"):               "\x00\x07\x87",
		connect(5, "u", "key") + packet(0x32, text("u/full"), "\x00\x07", "\x00", "p"):            "\x00\x07\x97",
	} {
		if got := l.talk([]byte(sent), want); !bytes.Contains(got, []byte(want)) {
			t.Errorf("%q was answered %q", sent, got)
		}
	}
	for _, sent := range []string{
		connect(4, "u", "wrong"), connect(3, "u", "key"), packet(0xc0), connect(4, "u", "key") + connect(4, "u", "key"),
		connect(4, "u", "key") + packet(0x34, text("u/x"), "\x00\x07", "p"), connect(4, "u", "key") + packet(0x30, text("v/x"), "p"),
		connect(4, "u", "key") + packet(0x32, text("u/full"), "\x00\x07", "p"), "\x10\xff\xff\xff\x7f", connect(4, "u", "key") + "\x30\xff\xff\xff\x7f",
		connect(5, "u", "key") + packet(0x82, "\x00\x01\x00", text("u/x")),
	} {
		if got := l.talk([]byte(sent), "nothing ends so"); bytes.Contains(got, []byte(pong)) {
			t.Errorf("%q was answered %q", sent, got)
		}
	}
}

// FuzzServe sends what a client might, before and after it was let in: nothing comes through
// that is not its own, and the server serves the next one.
func FuzzServe(f *testing.F) {
	for _, seed := range []string{
		connect(4, "u", "key") + packet(0x30, text("u/x"), "p"), connect(5, "u", "key") + packet(0x32, text("v/x"), "\x00\x01\x00", "p"),
		connect(4, "u", "key") + packet(0x82, "\x00\x01", text("u/#"), "\x01") + packet(0xa2, "\x00\x02", text("u/#")) + packet(0x40, "\x00\x01"),
		connect(5, "u", "key") + packet(0x82, "\x00\x01\x00", text("u/x")), connect(5, "u", "key") + packet(0x30, text("u/x"), "\x23\x00\x01", "p"),
		"\x10\xff\xff\xff\x7f", packet(0xe0), connect(5, "u", "key") + packet(0xe0, "\x04\x00"),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		l, end := serve(t)
		defer end()
		l.talk(sent, "")
		if got := l.talk([]byte(connect(4, "u", "key")+packet(0xc0)), pong); !bytes.HasPrefix(got, []byte(connack4+pong)) {
			t.Errorf("the next client was told %q", got)
		}
	})
}
