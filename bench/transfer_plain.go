package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

// plainCopy sends bytes over TCP through the proxy, without TLS and MQTT: what the
// link and the proxy that makes it can do.
type plainCopy struct {
	listener net.Listener
	through  string // the address of the way that leads to it
	serving  sync.WaitGroup
}

func startPlain(ctx context.Context, x *toxiproxy) (*plainCopy, error) {
	through, err := boot.FreeAddress()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &plainCopy{listener: l, through: through}
	p.serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			p.serving.Go(func() { serveZeros(c) })
		}
	})
	return p, x.add(ctx, plainName, through, l.Addr().String())
}

// serveZeros reads how many bytes are wanted, and sends them.
func serveZeros(c net.Conn) {
	defer func() { _ = c.Close() }() // the client has counted what came
	var n uint64
	if err := binary.Read(c, binary.BigEndian, &n); err != nil {
		return
	}
	b := make([]byte, 64<<10)
	for n > 0 {
		sent, err := c.Write(b[:min(uint64(len(b)), n)])
		if err != nil {
			return
		}
		n -= uint64(sent)
	}
}

// copy fetches size bytes and returns how long that took, with connecting and asking.
func (p *plainCopy) copy(ctx context.Context, size int) (time.Duration, error) {
	began := time.Now()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", p.through)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }() // read to its end
	if err := binary.Write(c, binary.BigEndian, uint64(size)); err != nil {
		return 0, err
	}
	n, err := io.Copy(io.Discard, c)
	if err == nil && n != int64(size) {
		err = fmt.Errorf("%d of %d bytes came through the proxy", n, size)
	}
	return time.Since(began), err
}

func (p *plainCopy) close() {
	_ = p.listener.Close()
	p.serving.Wait()
}
