package router

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
	"github.com/atelier-edge/atelier/routing"
)

// TestMain makes this binary a router when it is started as one: the real one, in a process
// of its own.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "--state" {
		if err := beRouter(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "router:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func beRouter(args []string) error {
	flags := flag.NewFlagSet("router", flag.ContinueOnError)
	state, control := flags.String("state", "", ""), flags.String("control", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := os.RemoveAll(*control); err != nil {
		return err
	}
	l, err := net.Listen("unix", *control)
	if err != nil {
		return err
	}
	r, err := routing.Open(routing.Options{Dir: *state, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(l, r.Control()) }()
	return r.Run(ctx)
}

type bench struct {
	*testing.T
	*Supervisor
	mu            sync.Mutex
	table         atelier.RoutingTable
	wanted        bool
	frames        chan []byte
	stop, restart func()
}

func newBench(t *testing.T) *bench {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("", "rt") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("secret"))
	b := &bench{T: t, frames: make(chan []byte, 100), wanted: true, table: atelier.RoutingTable{
		Listen: "127.0.0.1:0", Modules: []atelier.RoutedModule{{Name: "a", Password: hex.EncodeToString(sum[:])}},
		Routes: []atelier.MessageRoute{{Route: "FROM /modules/a/outputs/* INTO upstream"}},
	}}
	opts := Options{
		Program: self, State: t.TempDir(), Run: run, Config: "agent.toml", Changed: func() {},
		Table: func() (atelier.RoutingTable, bool) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.table, b.wanted
		},
		Publish: func(_ context.Context, frame []byte) error { b.frames <- frame; return nil },
		Times:   Times{Poll: 20 * time.Millisecond, Start: 20 * time.Second, Retry: time.Millisecond, RetryMost: 50 * time.Millisecond},
		Log:     slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	start := func() {
		s := New(opts)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { s.Run(ctx); close(done) }()
		b.Supervisor = s
		b.stop = sync.OnceFunc(func() { cancel(); <-done })
	}
	start()
	b.restart = func() { b.stop(); start() }
	t.Cleanup(func() {
		b.stop()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := Stop(ctx, NewClient(Socket(run))); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(run); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) set(edit func()) {
	b.mu.Lock()
	edit()
	b.mu.Unlock()
	b.Wake()
}

func (b *bench) eventually(what string, cond func() bool) {
	b.Helper()
	for deadline := time.Now().Add(60 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			c, _ := b.Condition()
			b.Fatalf("never: %s; condition %v %s; status %+v", what, c.True(), c.Why().Message(), b.Status())
		}
	}
}

func (b *bench) listens() bool { s := b.Status(); return s != nil && s.Listen != "" && s.Error == "" }

func (b *bench) put(text string) {
	b.Helper()
	c := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + b.Status().Listen).SetUsername("a").SetPassword("secret").SetClientID("a").SetConnectTimeout(20 * time.Second))
	for _, do := range []func() paho.Token{c.Connect, func() paho.Token { return c.Publish("modules/a/outputs/x", 1, false, text) }} {
		if token := do(); !token.WaitTimeout(30*time.Second) || token.Error() != nil {
			b.Fatal(token.Error())
		}
	}
	c.Disconnect(0)
}

func (b *bench) next() wire.TelemetryFrame {
	b.Helper()
	select {
	case raw := <-b.frames:
		f, err := wire.DecodeTelemetry(raw)
		if err != nil {
			b.Fatal(err)
		}
		return f
	case <-time.After(60 * time.Second):
		b.Fatal("no frame came")
	}
	return wire.TelemetryFrame{}
}

func TestCarriesAndEnds(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.eventually("it listens", b.listens)
	pid := b.Status().PID
	b.put("one")
	b.Connected(map[string]uint64{})
	f := b.next()
	if list, err := wire.DecodeMessages(f.Payload); err != nil || string(list[0].Payload) != "one" {
		t.Errorf("%+v, %v", list, err)
	}
	b.eventually("it waits", func() bool { return b.Status().Waiting() == 1 })

	// An agent that begins anew adopts it, and the hub gets what it has not acknowledged.
	b.restart()
	b.eventually("it is found", b.listens)
	if b.Status().PID != pid {
		t.Error("another router runs")
	}
	b.Connected(map[string]uint64{})
	if again := b.next(); again.Sequence != f.Sequence || again.Stream != f.Stream {
		t.Errorf("%+v", again)
	}

	// While something waits for the hub, it stays although nothing needs it.
	b.set(func() { b.wanted = false; b.table.Modules, b.table.Routes = nil, nil })
	b.eventually("it goes by the new table", func() bool { s := b.Status(); return s != nil && len(s.Queues) == 1 && s.Listen != "" })
	if c, any := b.Condition(); !any || !c.True() {
		t.Errorf("the condition is %v", c.Why())
	}
	b.Acked(f.Stream, f.Sequence)
	b.eventually("it ends", func() bool { b.Acked(f.Stream, f.Sequence); return b.Status() == nil })
	if _, any := b.Condition(); any {
		t.Error("there is still a condition")
	}
}

func TestStartsADeadRouterAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.eventually("it listens", b.listens)
	pid := b.Status().PID
	b.put("kept")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.eventually("another runs", func() bool { return b.listens() && b.Status().PID != pid })
	b.Connected(map[string]uint64{})
	if list, err := wire.DecodeMessages(b.next().Payload); err != nil || string(list[0].Payload) != "kept" {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	b := newBench(t)
	b.set(func() { b.table.Listen = taken.Addr().String() })
	b.eventually("it says so", func() bool {
		c, _ := b.Condition()
		return !c.True() && c.Why().Reason() == atelier.ReasonPortInUse && strings.Contains(c.Why().Remedy(), "modules.listen in agent.toml")
	})
	b.set(func() { b.table.Listen, b.table.Queue = "127.0.0.1:0", 1<<20 })
	b.eventually("it listens", b.listens)
	large := strings.Repeat("x", wire.MaxMessagePayload)
	for range 20 {
		b.put(large)
	}
	b.eventually("it says what was lost", func() bool {
		c, _ := b.Condition()
		return !c.True() && c.Why().Reason() == atelier.ReasonMessagesLost && strings.Contains(c.Why().Message(), "from a into upstream")
	})
}
