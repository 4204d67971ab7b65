package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const slowHead = "POST /e/x HTTP/1.1\r\nHost: a\r\nX-Api-Key: " + key + "\r\nContent-Length: "

// silentHTTP2 is how a client of HTTP/2 begins, with its settings and no call.
const silentHTTP2 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// dial opens a connection that is closed when the test ends, and sends text.
func (d *device) dial(text string) net.Conn {
	d.t.Helper()
	conn, err := net.Dial("tcp", d.addr)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = conn.Close() })
	_, _ = io.WriteString(conn, text) // it may have been turned away
	return conn
}

// served reports whether a client that comes now is answered, and with what otherwise.
func (d *device) served() (bool, string) {
	got := d.raw(slowHead + "2\r\nConnection: close\r\n\r\nhi")
	return strings.HasPrefix(got, "HTTP/1.1 200 ") && strings.HasSuffix(got, "hi"), got
}

// While all clients are at work, one more is told that there are too many.
func TestTooManyClients(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{MaxConns: 2})
	begun, end := make(chan struct{}, 2), make(chan struct{})
	b, _ := d.module("a", func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-end
		echo(w, r)
	})
	d.lead(b)
	busy := []net.Conn{d.dial(slowHead + "2\r\n\r\nhi"), d.dial(slowHead + "2\r\n\r\nhi")}
	for range busy {
		<-begun
	}
	if got := d.raw(""); !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "too many clients are connected") || !strings.Contains(got, "Retry-After: 1") {
		t.Errorf("the third client got %q", got)
	}
	close(end)
	for _, c := range busy { // those who were there did not notice
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 200 {
			t.Errorf("a client that was there got %v, %v", resp, err)
		}
	}
}

// Who opens 10,000 connections and says nothing, or the half of a request, keeps
// nobody out, however long he may.
func TestTenThousandConnections(t *testing.T) { // not parallel: other tests' clients have to be quick
	const clients, most = 10_000, 64
	count := clients
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if room := int(min(limit.Cur/2, clients)); room < count { // others' tests need some, too
		t.Logf("only %d connections, since this process may open %d files", room, limit.Cur)
		count = room
	}
	for name, c := range map[string]struct {
		text  string
		count int
	}{
		"nothing": {"", count}, "half a head": {"POST /e/x HTTP/1.1\r\nHost: a\r\nX-Slow: ", 2 * most},
		"half a body": {slowHead + "1000\r\n\r\nh", 2 * most}, "HTTP/2": {silentHTTP2, 2 * most},
		// This passes on as it comes: its pace alone ends it.
		"half a large body": {slowHead + "2000000\r\n\r\nh", most - 8},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDevice(t, Options{MaxConns: most, Times: Times{Head: time.Hour, Body: time.Hour, Idle: time.Hour}})
			b, _ := d.module("a", echo)
			d.lead(b)
			var group sync.WaitGroup
			for range 8 {
				group.Go(func() {
					for range c.count / 8 {
						d.dial(c.text)
					}
				})
			}
			group.Wait()
			for n := range 5 {
				until(t, fmt.Sprintf("client %d is answered", n), func() bool {
					ok, _ := d.served()
					return ok
				})
			}
			d.mu.Lock()
			held := len(d.conns)
			d.mu.Unlock()
			if bound := most + most/evictedShare + 1; held > bound {
				t.Errorf("%d clients are held, want %d at most", held, bound)
			}
		})
	}
}

// A client whose request does not come, or comes by drops, is told so, and nobody
// else waits for it.
func TestSlowBodies(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{Times: Times{Body: 100 * time.Millisecond}})
	b, _ := d.module("a", echo)
	d.lead(b)
	for name, text := range map[string]string{
		"held": slowHead + "1000\r\n\r\nh", "passed on": slowHead + "2000000\r\n\r\nh",
		"chunked": strings.Replace(slowHead, "Content-Length: ", "Transfer-Encoding: chunked\r\n\r\n5\r\nhel", 1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, dripping := range []bool{false, true} {
				conn := d.dial(text)
				stop := make(chan struct{})
				var drops sync.WaitGroup
				if dripping {
					drops.Go(func() {
						tick := time.NewTicker(5 * time.Millisecond)
						defer tick.Stop()
						for {
							select {
							case <-stop:
								return
							case <-tick.C:
								if _, err := io.WriteString(conn, "l"); err != nil {
									return
								}
							}
						}
					})
				}
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				close(stop)
				drops.Wait()
				if err != nil {
					t.Fatalf("dripping %v: %v", dripping, err)
				}
				said, _ := io.ReadAll(resp.Body) // the connection may break off behind it
				_ = resp.Body.Close()
				want := http.StatusRequestTimeout
				if dripping && name == "chunked" && resp.StatusCode != want {
					want = http.StatusBadRequest // what drips is no chunk
				}
				if resp.StatusCode != want || !strings.Contains(string(said), "body") {
					t.Errorf("dripping %v: %s %s", dripping, resp.Status, said)
				}
				if ok, got := d.served(); !ok {
					t.Errorf("another client got %q", got)
				}
			}
		})
	}
}
