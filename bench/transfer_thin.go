package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

// A thin link is what toxiproxy makes of loopback: so many bytes a second towards
// the device, and half the round trip added in each direction.
type thinLink struct {
	name string
	rate int           // bytes a second
	trip time.Duration // the round trip
	size int           // of the version that is pulled
}

const thinTrip = 100 * time.Millisecond

var thinLinks = []thinLink{
	{"10 Mbit/s, 100 ms round trip", 10_000_000 / 8, thinTrip, 25_000_000},
	{"100 Mbit/s, 100 ms round trip", 100_000_000 / 8, thinTrip, 250_000_000},
}

const (
	thinRounds = 2 // each takes 20 s and more; they differ by a percent
	cutEvery   = 5 * time.Second
	cutFor     = 200 * time.Millisecond
)

// transferThin pulls a version over each thin link, and once more while the
// faster one is cut every five seconds.
func transferThin(ctx context.Context, w *world) ([]Figure, error) {
	// The hub offers MQTT over WebSocket at its other address: that leads nowhere
	// here, so that all bytes take the link.
	addresses := make([]string, 3)
	for i := range addresses {
		var err error
		if addresses[i], err = boot.FreeAddress(); err != nil {
			return nil, err
		}
	}
	device, link, nowhere := addresses[0], addresses[1], addresses[2]
	counted, err := startCounter(device, link)
	if err != nil {
		return nil, err
	}
	defer counted.close()
	if err := w.boot(ctx, "--advertise-mqtt", device, "--advertise", nowhere); err != nil {
		return nil, err
	}
	if err := w.register(ctx); err != nil {
		return nil, err
	}
	proxy, err := w.startToxiproxy(ctx, link, w.mqtt)
	if err != nil {
		return nil, err
	}
	plain, err := startPlain(ctx, proxy)
	if err != nil {
		return nil, err
	}
	defer plain.close()
	d, err := w.join(ctx, "press")
	if err != nil {
		return nil, err
	}
	if err := w.atelier(ctx, "deploy", "digits:1", "--all", "-q"); err != nil { // brings the runtime
		return nil, err
	}
	var figures []Figure
	version := uint64(0)
	var offs []float64
	for _, link := range thinLinks {
		if err := proxy.thin(ctx, link); err != nil {
			return nil, err
		}
		var shares, copies []float64
		for range thinRounds {
			file, err := w.registerNoise(ctx, "thin", link.size, version)
			if err != nil {
				return nil, err
			}
			version++
			planned, err := w.planned(ctx, "thin", "--device", d.name)
			if err != nil {
				return nil, err
			}
			// From the command until the device has all of it, verified and synced. What
			// comes then, starting the module, is not the link's.
			began := time.Now()
			counted.watch(int64(link.size))
			serves := make(chan error, 1)
			go func() {
				_, err := w.bring(ctx, "thin", d)
				serves <- err
			}()
			had, err := d.has(ctx, file.digest)
			if err := errors.Join(err, <-serves); err != nil {
				return nil, err
			}
			received, err := w.received(ctx, "thin", false)
			if err != nil {
				return nil, err
			}
			offs = append(offs, off(planned, received))
			shares = append(shares, float64(link.size)/had.Sub(began).Seconds()/float64(link.rate))
			const part = 4 // of the version, to be done sooner
			took, err := plain.copy(ctx, link.size/part)
			if err != nil {
				return nil, err
			}
			copies = append(copies, float64(link.size/part)/took.Seconds()/float64(link.rate))
			fmt.Fprintf(w.out, "  %s: %.1f %% of the link's rate, %.2f s, in the last %.2f s of which nothing came; a bare TCP connection %.1f %%\n",
				link.name, 100*shares[len(shares)-1], had.Sub(began).Seconds(), had.Sub(counted.reached()).Seconds(), 100*copies[len(copies)-1])
		}
		share := higher("payload over a link of "+link.name, "of the link's rate", shares).want(0.95)
		figures = append(figures, share.beside("a bare TCP connection through the same proxy", copies))
	}
	last := thinLinks[len(thinLinks)-1]
	if _, err := w.registerNoise(ctx, "thin", last.size, version); err != nil {
		return nil, err
	}
	before := counted.down.Load()
	cutting, stop := context.WithCancel(ctx)
	cuts := make(chan int, 1)
	failed := make(chan error, 1)
	go func() {
		n, err := proxy.cutRepeatedly(cutting)
		cuts <- n
		failed <- err
	}()
	_, err = w.bring(ctx, "thin", d)
	stop()
	n := <-cuts
	if err := errors.Join(err, <-failed); err != nil {
		return nil, err
	}
	twice := float64(counted.down.Load()-before) - float64(last.size)
	fmt.Fprintf(w.out, "  %s, cut %d times: %.0f kB more than the version\n", last.name, n, twice/1e3)
	again := []float64{twice / float64(max(n, 1))}
	window := float64(last.rate) * (last.trip + 100*time.Millisecond).Seconds()
	return append(figures, offFigure("all rounds over thin links", offs), lower("bytes beyond the version for each cut, link of "+last.name+" cut every 5 s", "bytes", again).want(window)), nil
}

// counter passes connections on and counts their bytes, as the device's socket
// has them.
type counter struct {
	listener net.Listener
	to       string
	down     atomic.Int64 // bytes towards the device
	up       atomic.Int64 // bytes from it
	mark     atomic.Int64 // of down, or 0
	at       atomic.Int64 // when mark was reached, in Unix nanoseconds
	passing  sync.WaitGroup
}

// watch waits for n more bytes towards the device; reached says when they had come.
func (c *counter) watch(n int64) { c.mark.Store(c.down.Load() + n) }

func (c *counter) reached() time.Time { return time.Unix(0, c.at.Load()) }

// count counts n bytes towards the device.
func (c *counter) count(n int) {
	if mark := c.mark.Load(); c.down.Add(int64(n)) >= mark && mark != 0 && c.mark.CompareAndSwap(mark, 0) {
		c.at.Store(time.Now().UnixNano())
	}
}

func startCounter(listen, to string) (*counter, error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	c := &counter{listener: l, to: to}
	c.passing.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed
			}
			c.passing.Go(func() { c.pass(client) })
		}
	})
	return c, nil
}

func (c *counter) pass(client net.Conn) {
	hub, err := net.Dial("tcp", c.to)
	if err != nil {
		_ = client.Close() // the device tries again
		return
	}
	var both sync.WaitGroup
	one := func(to, from net.Conn, count func(int)) {
		defer func() { _, _ = to.Close(), from.Close() }() // both are done with
		b := make([]byte, 64<<10)
		for {
			read, err := from.Read(b)
			count(read)
			if _, werr := to.Write(b[:read]); err != nil || werr != nil {
				return
			}
		}
	}
	both.Go(func() { one(hub, client, func(n int) { c.up.Add(int64(n)) }) })
	both.Go(func() { one(client, hub, c.count) })
	both.Wait()
}

// close ends listening; what passes ends with the programs on its ends.
func (c *counter) close() { _ = c.listener.Close() }

// toxiproxy is Shopify's toxiproxy, which `make test-tools` builds.
type toxiproxy struct {
	api     string
	proxies []string
}

const (
	proxyName = "mqtt"
	plainName = "plain" // leads to a server that sends bytes over TCP
)

func (w *world) startToxiproxy(ctx context.Context, listen, to string) (*toxiproxy, error) {
	found, err := filepath.Glob(filepath.Join(w.root, ".cache/bin/toxiproxy-server-*"))
	if err != nil {
		return nil, err
	}
	if len(found) != 1 {
		return nil, errors.New("toxiproxy is not there; 'make test-tools' builds it")
	}
	api, err := boot.FreeAddress()
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(api)
	if err != nil {
		return nil, err
	}
	p := &boot.Program{Path: "/usr/bin/env", Args: []string{"LOG_LEVEL=error", found[0], "-host", host, "-port", port}, Log: filepath.Join(w.dir, "toxiproxy.log")}
	if err := p.Start(); err != nil {
		return nil, err
	}
	x := &toxiproxy{api: "http://" + api}
	w.others = append(w.others, p)
	return x, boot.Eventually(ctx, 10*time.Second, func() error { return x.add(ctx, proxyName, listen, to) })
}

// add makes another way through the proxy.
func (x *toxiproxy) add(ctx context.Context, name, listen, to string) error {
	if err := x.do(ctx, http.MethodPost, "/proxies", map[string]any{"name": name, "listen": listen, "upstream": to, "enabled": true}); err != nil {
		return err
	}
	x.proxies = append(x.proxies, name)
	return nil
}

// thin makes all ways that thin, each of them, instead of what they were.
func (x *toxiproxy) thin(ctx context.Context, link thinLink) error {
	if err := x.do(ctx, http.MethodPost, "/reset", nil); err != nil {
		return err
	}
	half := link.trip.Milliseconds() / 2
	for _, toxic := range []map[string]any{
		{"name": "up", "type": "latency", "stream": "upstream", "attributes": map[string]any{"latency": half}},
		{"name": "down", "type": "latency", "stream": "downstream", "attributes": map[string]any{"latency": half}},
		{"name": "rate", "type": "bandwidth", "stream": "downstream", "attributes": map[string]any{"rate": link.rate / 1000}},
	} {
		for _, name := range x.proxies {
			if err := x.do(ctx, http.MethodPost, "/proxies/"+name+"/toxics", toxic); err != nil {
				return err
			}
		}
	}
	return nil
}

// cutRepeatedly cuts the link every now and then until ctx ends, and says how often.
func (x *toxiproxy) cutRepeatedly(ctx context.Context) (cuts int, err error) {
	healed := context.WithoutCancel(ctx)
	for pause(ctx, cutEvery) == nil {
		if err := x.do(healed, http.MethodPost, "/proxies/"+proxyName, map[string]any{"enabled": false}); err != nil {
			return cuts, err
		}
		cuts++
		_ = pause(ctx, cutFor) // the link is healed also at the end
		if err := x.do(healed, http.MethodPost, "/proxies/"+proxyName, map[string]any{"enabled": true}); err != nil {
			return cuts, err
		}
	}
	return cuts, nil
}

func (x *toxiproxy) do(ctx context.Context, method, path string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, x.api+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	out, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("toxiproxy: %s %s: %s: %s", method, path, res.Status, out)
	}
	return nil
}
