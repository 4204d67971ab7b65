package main

import (
	"net/http"
	"sync"
	"syscall"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

// load is some clients that keep their connections, which are lent soon.
type load struct {
	wg                       sync.WaitGroup
	mu                       sync.Mutex
	good, bad, torn, strange uint64
}

// start lets each of clients send requests until one is not answered well.
func (l *load) start(d *device, clients int) {
	address := d.status().Listen
	for range clients {
		l.wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for again := true; again; {
				status, y, id, err := d.score(client, address)
				l.mu.Lock()
				switch {
				case err != nil:
					l.torn++
					again = false
				case status == 200 && y == 102 && id != "":
					l.good++
				case (status == 502 || status == 503) && id != "":
					l.bad++
					again = false
				default:
					l.strange++
					again = false
				}
				l.mu.Unlock()
			}
		})
	}
	until(d.t, "connections are lent", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.good > 500 || l.bad+l.torn+l.strange > 0
	})
}

// A model server is killed while it has all connections. Who waited is answered by
// the gateway, and each request is counted, and none twice.
func TestModuleKilledWithLentConnections(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	cmd, backend := d.serve("v1", 100)
	d.lead(backend)
	var l load
	const clients = 8
	l.start(d, clients)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	l.wg.Wait()
	t.Logf("%d answers, %d of them 502 or 503, %d connections torn in an answer", l.good+l.bad, l.bad, l.torn)
	if l.strange > 0 || l.bad+l.torn != clients {
		t.Errorf("%d clients were answered 502 or 503, %d connections were torn, %d answers were strange", l.bad, l.torn, l.strange)
	}
	var c atelier.EndpointCounters
	until(t, "nothing is in flight", func() bool { c = d.status().Counters[0]; return c.InFlight == 0 })
	var counted, buckets uint64
	for _, n := range c.Requests {
		counted += n
	}
	for _, n := range c.Buckets {
		buckets += n
	}
	// A connection may be torn in an answer, or after one before the next request.
	if counted < l.good+l.bad || counted > l.good+l.bad+l.torn || buckets != counted {
		t.Errorf("%+v was counted, %d answers came and %d connections were torn", c, l.good+l.bad, l.torn)
	}
	if _, again := d.serve("v1", 100); again != backend {
		t.Fatalf("the second server's backend is %+v", again)
	}
	if status, y, _, err := d.score(http.DefaultClient, d.status().Listen); status != 200 || y != 102 {
		t.Errorf("after a new start: %d, %v, %v", status, y, err)
	}
	if after := d.status().Counters[0].Requests["2xx"]; after != c.Requests["2xx"]+1 {
		t.Errorf("%d answers were counted before the new start, %d after the next", c.Requests["2xx"], after)
	}
}

// A gateway is killed while all connections are lent. Its model server closes them,
// and serves the next gateway.
func TestGatewayKilledWithLentConnections(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	cmd, backend := d.serve("v1", 100)
	d.lead(backend)
	address := d.status().Listen
	var before, after load
	before.start(d, 4)
	if err := d.gateway.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = d.gateway.Wait() // it was killed
	before.wg.Wait()
	if before.torn != 4 {
		t.Errorf("%d connections ended, 4 were expected", before.torn)
	}
	d.startGateway(address)
	after.start(d, 4)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the model server: %v", err)
	}
	after.wg.Wait()
	if after.bad != 4 {
		t.Errorf("after the model server's proper end %d clients were answered 503, %d connections torn, %d answers strange", after.bad, after.torn, after.strange)
	}
}
