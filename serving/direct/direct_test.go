package direct

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// pair returns two ends of a stream socket.
func pair(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "d") // t.TempDir's paths are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ours, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a, errA := New(ours)
	b, errB := New(theirs)
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() }) // a test may have closed them
	return a, b
}

// What does not fit the socket waits and comes whole, in both directions at a time.
func TestMuchPasses(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	much := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	done := make(chan error, 4)
	for _, ends := range [][2]*Conn{{a, b}, {b, a}} {
		go func() {
			n, err := ends[0].Write(much)
			if err == nil && n != len(much) {
				err = io.ErrShortWrite
			}
			done <- err
		}()
		go func() {
			got := make([]byte, len(much))
			_, err := io.ReadFull(ends[1], got)
			if err == nil && !bytes.Equal(got, much) {
				err = errors.New("other bytes came")
			}
			done <- err
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Ends, deadlines and torn connections are told as net.Conn tells them.
func TestEnds(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	if err := a.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	if err := errors.Join(a.SetReadDeadline(time.Time{}), b.Close()); err != nil {
		t.Fatal(err)
	}
	if n, err := a.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if _, err := a.Write([]byte("x")); err == nil {
		t.Error("nobody reads, and it was written")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// A connection without a descriptor is refused.
func TestNoDescriptor(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, err := New(a); err == nil {
		t.Error("it was taken")
	}
}
