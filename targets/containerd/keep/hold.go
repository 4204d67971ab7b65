package keep

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/targets/logfile"
)

// The descriptors that containerd's shim gives to a program that takes a container's output:
// closing the last tells that it is ready. See containerd's docs on logging binaries.
const (
	stdoutFD = 3
	stderrFD = 4
	readyFD  = 5
)

// connections bounds how many connections are passed on at once; others wait.
const connections = 1024

// dialPatience bounds how long the container may take to take a connection.
const dialPatience = 5 * time.Second

// Hold holds the container whose directory is dir until all of its outputs are closed.
func Hold(dir string) error {
	// The shim asks it to end when it has closed the outputs: what is in them comes first.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	b, err := durable.ReadFile(durable.OS{}, filepath.Join(dir, PlanFile))
	if err != nil {
		return err
	}
	var plan Plan
	if err := durable.Decode(b, PlanFile, Format, &plan); err != nil {
		return err
	}
	// Held as long as this process lives: whoever wants the whole log waits for it.
	lock, err := os.Open(filepath.Join(dir, PlanFile))
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return err
	}
	if plan.Network != "" {
		if err := MakeNetwork(plan.Network); err != nil {
			return err
		}
		defer func() { _ = RemoveNetwork(plan.Network) }() // the driver does it where this fails
	}
	var relay *relay
	if plan.Port != 0 {
		if relay, err = newRelay(&plan); err != nil {
			return err
		}
		defer relay.close()
	}
	log := logfile.Open(plan.Log, plan.LogLimit)
	defer log.Close()
	if err := os.NewFile(readyFD, "ready").Close(); err != nil {
		return err
	}
	var mu sync.Mutex
	var outputs sync.WaitGroup
	for _, fd := range []uintptr{stdoutFD, stderrFD} {
		outputs.Go(func() {
			f := os.NewFile(fd, "output")
			buf := make([]byte, 32<<10)
			for {
				n, err := f.Read(buf)
				mu.Lock()
				_, _ = log.Write(buf[:n]) // it never fails
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	outputs.Wait()
	return nil
}

// relay passes connections on to a container.
type relay struct {
	listener net.Listener
	address  string
	dials    chan dial
	slots    chan struct{}
}

// dial asks the thread that is in the container's network for a connection.
type dial struct {
	to     string
	answer chan<- dialled
}

type dialled struct {
	conn net.Conn
	err  error
}

func newRelay(plan *Plan) (*relay, error) {
	r := &relay{address: net.JoinHostPort("127.0.0.1", strconv.Itoa(plan.Port)), dials: make(chan dial), slots: make(chan struct{}, connections)}
	entered := make(chan error, 1)
	go r.dial(plan.Network, entered) // until the program ends
	if err := <-entered; err != nil {
		return nil, err
	}
	if err := os.Remove(plan.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", plan.Socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(plan.Socket, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	r.listener = l
	go r.accept() // until it is closed
	return r, nil
}

func (r *relay) close() { _ = r.listener.Close() } // the program ends

// dial makes connections in the network that the file stands for. A socket belongs to the
// network in which its thread was when it was made.
func (r *relay) dial(network string, entered chan<- error) {
	if network != "" {
		if err := enter(network); err != nil {
			entered <- err
			return
		}
	}
	entered <- nil
	for d := range r.dials {
		// It connects within the machine, to what listens or does not, so that others need not
		// wait for long.
		ctx, cancel := context.WithTimeout(context.Background(), dialPatience)
		conn, err := new(net.Dialer).DialContext(ctx, "tcp4", d.to)
		cancel()
		d.answer <- dialled{conn, err}
	}
}

func (r *relay) accept() {
	for {
		r.slots <- struct{}{}
		in, err := r.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			<-r.slots
			time.Sleep(50 * time.Millisecond) // out of descriptors, say
			continue
		}
		go func() {
			defer func() { <-r.slots }()
			r.pass(in)
		}()
	}
}

// pass carries bytes in both directions until both have ended.
func (r *relay) pass(in net.Conn) {
	defer in.Close()
	answer := make(chan dialled, 1)
	r.dials <- dial{r.address, answer}
	d := <-answer
	if d.err != nil {
		return // the caller sees that the connection ends
	}
	out := d.conn
	defer out.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		carry(out, in)
	}()
	carry(in, out)
	<-done
}

// carry copies until from ends, and tells to.
func carry(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		_ = half.CloseWrite() // the other direction finds out
		return
	}
	_ = to.Close()   // likewise
	_ = from.Close() // likewise
}
