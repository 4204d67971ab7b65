package lending

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// channel is the module's end of one channel.
type channel struct {
	b      *Borrower
	conn   *net.UnixConn
	terms  Terms
	prefix []byte // of paths below the endpoint, without the first slash
	page   *page
	orphan atomic.Bool // the gateway is gone: nobody takes a connection back

	mu       sync.Mutex
	draining bool
	loans    map[uint32]*lent
	running  sync.WaitGroup // loans
	first    chan struct{}  // tells nudges of a loan
	ended    chan struct{}
}

// helloTime bounds how long the first packet may take.
const helloTime = 5 * time.Second

// run borrows until the channel ends, and returns when all of its connections are
// given back or closed.
func (c *channel) run() error {
	defer c.conn.Close()
	buffer := make([]byte, maxFrame)
	if err := c.hello(buffer); errors.Is(err, errDraining) {
		return nil
	} else if err != nil {
		return err
	}
	defer c.page.unmap()
	go c.nudges() // ends with the channel
	defer close(c.ended)
	defer c.running.Wait()
	for {
		f, file, err := receive(c.conn, buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil // by drain
		}
		if err == nil {
			err = c.obey(&f, file)
		}
		if err == nil {
			continue
		}
		c.orphan.Store(true)
		c.recall()
		if atelier.CodeOf(err) == atelier.Invalid {
			return err
		}
		return nil // the gateway has ended
	}
}

// errDraining ends a channel that has just been opened.
var errDraining = errors.New("the module ends")

// hello reads the first packet.
func (c *channel) hello(buffer []byte) error {
	if err := c.conn.SetReadDeadline(time.Now().Add(helloTime)); err != nil {
		return err
	}
	f, file, err := receive(c.conn, buffer)
	if err != nil {
		return err
	}
	if file != nil {
		defer func() { _ = file.Close() }() // what it leads to is mapped
	}
	if f.kind != kindHello {
		return atelier.Errorf(atelier.Invalid, "a channel began with a packet of kind %q", f.kind)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return errDraining
	}
	c.terms, c.prefix = f.terms, []byte(f.terms.Endpoint+"/")
	if c.page, err = mapPage(file); err != nil {
		return err
	}
	return c.conn.SetReadDeadline(time.Time{})
}

// obey does what a packet asks for. file is the descriptor that came with it.
func (c *channel) obey(f *frame, file *os.File) error {
	switch f.kind {
	case kindRecall:
		c.recall()
		return nil
	case kindLend:
		return c.borrow(f, file)
	}
	if file != nil {
		_ = file.Close() // a second hello's, perhaps
	}
	return atelier.Errorf(atelier.Invalid, "a packet of kind %q came, which a gateway does not send here", f.kind)
}

// borrow begins to answer what comes on a connection.
func (c *channel) borrow(f *frame, file *os.File) error {
	conn, err := net.FileConn(file)
	_ = file.Close() // conn has its own
	if err != nil {
		return atelier.Errorf(atelier.Invalid, "a descriptor that was lent is no connection: %w", err)
	}
	l, err := newLent(c, f, conn)
	if err != nil {
		_ = conn.Close() // the gateway has its own
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loans[f.slot] != nil {
		_ = conn.Close() // likewise
		return atelier.Errorf(atelier.Invalid, "slot %d was lent twice", f.slot)
	}
	if c.draining {
		c.giveBack(l, Back)
		return nil
	}
	c.loans[f.slot] = l
	select {
	case c.first <- struct{}{}:
	default: // it knows of others already
	}
	c.running.Add(1)
	go func() { // ends with the loan; run waits for it
		defer c.running.Done()
		outcome := l.serve()
		c.mu.Lock()
		delete(c.loans, f.slot)
		c.mu.Unlock()
		c.giveBack(l, outcome)
	}()
	return nil
}

// giveBack ends a loan with the bytes that were not answered.
func (c *channel) giveBack(l *lent, outcome Outcome) {
	if !c.orphan.Load() {
		// Where this fails the gateway is gone, and the connection with it.
		_ = send(c.conn, appendBack(nil, l.index, outcome, l.unread()), -1)
	}
	_ = l.conn.Close() // the gateway has its own, unless it is gone
}

// recall wakes the loans whose connections are asked back.
func (c *channel) recall() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wake()
}

func (c *channel) wake() {
	for _, l := range c.loans {
		if l.recalled() {
			l.interrupt()
		}
	}
}

// drain gives everything back and ends the channel.
func (c *channel) drain() {
	c.mu.Lock()
	c.draining = true
	for _, l := range c.loans {
		l.leaving.Store(true)
	}
	c.wake()
	c.mu.Unlock()
	c.running.Wait()
	_ = c.conn.SetReadDeadline(time.Unix(1, 0)) // wakes run; it fails only with the channel
}
