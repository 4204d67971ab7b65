package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/agenttest"
)

// TestMain makes this binary a gateway when it is started as one: a process of
// its own that speaks the control protocol and really listens.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "--state" {
		if err := agenttest.BeGateway(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "gateway:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type bench struct {
	*testing.T
	opts      Options
	listen    atomic.Pointer[string]
	restarted atomic.Int64
	*Supervisor
	stop func()
}

func newBench(t *testing.T) *bench {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("", "gw") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{T: t, stop: func() {}}
	b.setListen("127.0.0.1:0")
	b.opts = Options{
		Program: self, State: t.TempDir(), Run: run, Listen: func() string { return *b.listen.Load() },
		Restarted: func() { b.restarted.Add(1) }, Changed: func() {},
		Times: Times{Poll: 10 * time.Millisecond, Start: 20 * time.Second, Retry: time.Millisecond, RetryMost: 50 * time.Millisecond},
		Log:   slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
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

func (b *bench) setListen(address string) { b.listen.Store(&address) }

// start starts a supervisor, as an agent that starts.
func (b *bench) start() {
	b.stop()
	b.Supervisor = NewSupervisor(b.opts)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s := b.Supervisor
	go func() { s.Run(ctx); close(done) }()
	b.stop = func() { cancel(); <-done }
}

func (b *bench) eventually(what string, cond func() bool) {
	b.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			c := b.Condition()
			b.Fatalf("never: %s; condition: %v %s: %s", what, c.True(), c.Why().Reason(), c.Why().Message())
		}
		time.Sleep(5 * time.Millisecond) // the pause of a poll
	}
}

func (b *bench) serves() int {
	b.Helper()
	b.eventually("the gateway serves", func() bool { return b.Condition().True() })
	s, err := b.Client().Status(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return s.PID
}

func TestStartsAndLeavesTheGatewayRunning(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.start()
	pid := b.serves()
	if b.Address() == "" || b.restarted.Load() != 1 {
		t.Errorf("address %q, told of %d gateways", b.Address(), b.restarted.Load())
	}
	b.stop()
	if s, err := b.Client().Status(t.Context()); err != nil || s.PID != pid {
		t.Fatalf("the gateway went with its supervisor: %v", err)
	}
	b.start()
	if again := b.serves(); again != pid {
		t.Errorf("the gateway was not adopted: process %d, before %d", again, pid)
	}
}

func TestStartsADeadGatewayAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.start()
	pid := b.serves()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.eventually("another one runs", func() bool {
		s, err := b.Client().Status(t.Context())
		return err == nil && s.PID != pid
	})
	b.eventually("that is told", func() bool { return b.restarted.Load() == 2 })
	b.serves()
}

func TestAnotherAddressStartsItAnew(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.start()
	pid := b.serves()
	b.setListen("localhost:0")
	b.eventually("another one runs", func() bool {
		s, err := b.Client().Status(t.Context())
		return err == nil && s.PID != pid
	})
	b.serves()
}

func TestSaysThatTheAddressIsTaken(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	b.setListen(taken.Addr().String())
	b.start()
	b.eventually("it says so", func() bool {
		c := b.Condition()
		return !c.True() && c.Why().Reason() == atelier.ReasonPortInUse && strings.Contains(c.Why().Message(), "in use")
	})
}

func TestSaysWhyThereIsNoGateway(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.opts.Program = "/no/such/program"
	b.start()
	b.eventually("it says so", func() bool {
		c := b.Condition()
		return c.Why().Reason() == atelier.ReasonGatewayDown && strings.Contains(c.Why().Message(), "no such file")
	})
	b.stop()
	if b.opts.Program, _ = os.Executable(); b.opts.Program == "" {
		t.Fatal("no executable")
	}
	refuse := filepath.Join(b.opts.State, "refuse")
	if err := os.WriteFile(refuse, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.start()
	b.eventually("it tells the last line of the log", func() bool {
		return strings.Contains(b.Condition().Why().Message(), "it refuses to start")
	})
	if err := os.Remove(refuse); err != nil {
		t.Fatal(err)
	}
	b.serves()
}

func TestClient(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := NewClient(Socket(b.opts.Run))
	if _, err := c.Status(t.Context()); atelier.CodeOf(err) != atelier.Unavailable {
		t.Errorf("without a gateway: %v", err)
	}
	if _, err := Ready(t.Context(), Socket(b.opts.Run)); err == nil {
		t.Error("nobody is ready")
	}
	b.start()
	b.serves()
	if _, err := Ready(t.Context(), Socket(b.opts.Run)); err != nil {
		t.Error(err)
	}
	if err := c.Apply(t.Context(), atelier.RouteTable{Sequence: 7, Device: "d"}); err != nil {
		t.Fatal(err)
	}
	if s, err := c.Status(t.Context()); err != nil || s.Sequence != 7 {
		t.Errorf("sequence %d, %v", s.Sequence, err)
	}
	if err := c.Apply(t.Context(), atelier.RouteTable{}); atelier.CodeOf(err) != atelier.Internal || !strings.Contains(err.Error(), "no table") {
		t.Errorf("a refused table: %v", err)
	}
}
