package routing

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

// closer is a connection that the test cuts.
type closer struct {
	mu   sync.Mutex
	conn net.Conn
}

func (c *closer) open(uri *url.URL, _ paho.ClientOptions) (net.Conn, error) {
	conn, err := net.Dial("tcp", uri.Host)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
	return conn, err
}

func (c *closer) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.conn.Close() // that is the point
}

// hub is the agent's side of the stream, as far as the hub's acknowledgements go.
type hub struct {
	*device
	server *httptest.Server
	cancel func()
	frames chan wire.TelemetryFrame
}

func (d *device) connect(stored map[string]uint64) *hub {
	d.Helper()
	h := &hub{device: d, server: httptest.NewServer(d.router.Control()), frames: make(chan wire.TelemetryFrame, 1000)}
	body, err := json.Marshal(stored)
	if err != nil {
		d.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.server.URL+"/hub", bytes.NewReader(body))
	if err != nil {
		d.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.Fatal(err)
	}
	ended := make(chan struct{})
	h.cancel = sync.OnceFunc(func() { cancel(); <-ended; h.server.Close() })
	d.Cleanup(h.cancel)
	go func() {
		defer close(ended)
		defer resp.Body.Close()
		in := bufio.NewReader(resp.Body)
		for {
			var head [4]byte
			if _, err := io.ReadFull(in, head[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint32(head[:]))
			if _, err := io.ReadFull(in, b); err != nil {
				return
			}
			f, err := wire.DecodeTelemetry(b)
			if err != nil {
				d.Error(err)
				return
			}
			h.frames <- f
		}
	}()
	return h
}

// next returns the messages of the next frame.
func (h *hub) next() (wire.TelemetryFrame, []wire.ModuleMessage) {
	h.Helper()
	select {
	case f := <-h.frames:
		list, err := wire.DecodeMessages(f.Payload)
		if err != nil {
			h.Fatal(err)
		}
		return f, list
	case <-time.After(30 * time.Second):
		h.Fatalf("no frame came; %+v", h.router.Status())
	}
	return wire.TelemetryFrame{}, nil
}

func (h *hub) ack(f wire.TelemetryFrame) {
	h.Helper()
	b, err := json.Marshal(wire.Ack{Stream: f.Stream, Through: f.Sequence})
	if err != nil {
		h.Fatal(err)
	}
	resp, err := http.Post(h.server.URL+"/acked", "application/json", bytes.NewReader(b))
	if err != nil || resp.StatusCode != http.StatusNoContent {
		h.Fatal(resp, err)
	}
	resp.Body.Close()
}

func TestMessagesReachTheHub(t *testing.T) {
	t.Parallel()
	d := newDevice(t, "FROM /modules/a/outputs/* INTO upstream")
	a := d.module("a")
	a.put("x", "while it is away")
	h := d.connect(map[string]uint64{})
	first, list := h.next()
	if len(list) != 1 || list[0].Module != "a" || list[0].Output != "x" || string(list[0].Payload) != "while it is away" || list[0].TTL != 7200 || first.Sequence != 1 {
		t.Fatalf("%+v %+v", first, list)
	}
	h.cancel() // before it was acknowledged
	h = d.connect(map[string]uint64{})
	again, _ := h.next()
	if again.Stream != first.Stream || again.Sequence != first.Sequence {
		t.Fatalf("%+v", again)
	}
	h.ack(again)
	d.eventually("nothing waits", func() bool { s := d.router.Status(); return s.Waiting() == 0 })
	a.put("y", "then")
	second, list := h.next()
	if string(list[0].Payload) != "then" || second.Sequence != 2 {
		t.Fatalf("%+v %+v", second, list)
	}
	// A router that begins anew goes on behind what the hub has.
	h.cancel()
	d.end()
	d.start()
	h = d.connect(map[string]uint64{first.Stream: 2})
	d.module("a").put("x", "after")
	if third, list := h.next(); string(list[0].Payload) != "after" || third.Sequence != 3 || third.Stream != first.Stream {
		t.Fatalf("%+v %+v", third, list)
	}
}

func TestTwins(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.table.Modules[0].Twin = &atelier.DesiredTwin{Version: 3, Properties: json.RawMessage(`{"interval":5}`)}
	d.apply()
	a := d.module("a", "twin/desired")
	a.expect("modules/a/twin/desired", `{"$version":3,"interval":5}`)
	d.table.Modules[0].Twin = &atelier.DesiredTwin{Version: 4, Properties: json.RawMessage(`{}`)}
	d.apply()
	a.expect("modules/a/twin/desired", `{"$version":4}`)
	d.apply() // nothing new
	h := d.connect(map[string]uint64{})
	a.done(a.Publish("modules/a/twin/reported", 1, false, `{"mode":"fast","x":{"y":1}}`))
	a.done(a.Publish("modules/a/twin/reported", 1, true, `{"x":{"y":null},"n":1}`))
	for {
		_, list := h.next()
		last := list[len(list)-1]
		if last.Kind != wire.FromTwin || last.Module != "a" {
			t.Fatalf("%+v", last)
		}
		if last.Version == 2 {
			if string(last.Payload) != `{"mode":"fast","n":1,"x":{}}` {
				t.Errorf("%s", last.Payload)
			}
			break
		}
	}
	// Offline and begun anew the module still gets what was wanted last.
	h.cancel()
	d.end()
	d.start()
	a = d.module("a", "twin/desired")
	a.expect("modules/a/twin/desired", `{"$version":4}`)
	a.done(a.Publish("modules/a/twin/reported", 1, false, `{"n":null}`))
	h = d.connect(map[string]uint64{})
	for last := (wire.ModuleMessage{}); last.Version != 3; {
		_, list := h.next()
		if last = list[len(list)-1]; last.Version == 3 && string(last.Payload) != `{"mode":"fast","x":{}}` {
			t.Errorf("%s", last.Payload)
		}
	}
	a.Publish("modules/a/twin/reported", 1, false, `["no object"]`)
	d.eventually("the connection of who reports nonsense ended", func() bool { return !a.IsConnectionOpen() })
}

func TestAModelTakesMessages(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "m.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	busy := 3
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if busy--; busy > 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		b, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path != "/score" {
			t.Errorf("%s was asked, %v", r.URL, err)
		}
		if string(b) == "bad" {
			w.WriteHeader(http.StatusBadRequest)
		}
		_, _ = w.Write(append([]byte("answer to "), b...))
	})}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	d := newDevice(t, "FROM /modules/a/outputs/x INTO /modules/b/inputs/score", "FROM /modules/b/outputs/score INTO /modules/c/inputs/answers", "FROM /modules/b/outputs/errors INTO /modules/c/inputs/errors")
	a, c := d.module("a"), d.module("c", "inputs/#")
	for _, text := range []string{"1", "2", "3", "bad"} {
		a.put("x", text)
	}
	d.table.Modules[1].Socket = socket // the model is ready only now
	d.apply()
	for _, text := range []string{"1", "2", "3"} {
		c.expect("modules/c/inputs/answers", "answer to "+text)
	}
	c.expect("modules/c/inputs/errors", "answer to bad")
	d.eventually("all settled", func() bool { q := d.queue("a", "b"); return q.Pending == 0 && q.Delivered == 3 && q.Failed == 1 })
}
