// Package direct reads and writes stream sockets without telling Go's scheduler
// of each system call.
//
// The scheduler treats a system call as one that may block: where the kernel
// takes the processor away within it, another thread is woken to go on with the
// goroutines, and a watching thread looks every 20 µs. On a device whose
// processors are busy that costs more than a small request does. Sockets of the
// runtime never block, so that none of it is needed.
package direct

import (
	"errors"
	"io"
	"net"
	"syscall"
	"unsafe"
)

// Conn is a stream socket. At a time one goroutine may read it and one may write
// it; the other methods are those of the net.Conn that it was made of.
type Conn struct {
	net.Conn
	raw   syscall.RawConn
	read  operation
	write operation
}

// operation is a read or a write. do is made once, so that none allocates.
type operation struct {
	p   []byte
	n   int
	err error
	do  func(fd uintptr) (done bool)
}

// New returns c with reads and writes of its own. It must be a stream socket.
func New(c net.Conn) (*Conn, error) {
	with, ok := c.(syscall.Conn)
	if !ok {
		return nil, errors.New("a connection of this kind has no descriptor")
	}
	raw, err := with.SyscallConn()
	if err != nil {
		return nil, err
	}
	d := &Conn{Conn: c, raw: raw}
	d.read.do = func(fd uintptr) bool {
		d.read.n, d.read.err = Read(fd, d.read.p)
		return !Again(d.read.err)
	}
	d.write.do = func(fd uintptr) bool {
		for d.write.n < len(d.write.p) {
			n, err := write(fd, d.write.p[d.write.n:])
			if d.write.err = err; err != nil {
				return !Again(err)
			}
			d.write.n += n
		}
		return true
	}
	return d, nil
}

// Raw returns the descriptor, for calls of one's own.
func (c *Conn) Raw() syscall.RawConn { return c.raw }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	o := &c.read
	o.p, o.n, o.err = p, 0, nil
	err := c.raw.Read(o.do)
	o.p = nil
	switch {
	case err != nil:
		return 0, err
	case o.err != nil:
		return 0, o.err
	case o.n == 0:
		return 0, io.EOF
	}
	return o.n, nil
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	o := &c.write
	o.p, o.n, o.err = p, 0, nil
	err := c.raw.Write(o.do)
	o.p = nil
	if err == nil {
		err = o.err
	}
	return o.n, err
}

// Read reads what is there from a non-blocking descriptor. At the end it returns 0
// and no error.
func Read(fd uintptr, p []byte) (int, error) { return call(syscall.SYS_READ, fd, p) }

func write(fd uintptr, p []byte) (int, error) { return call(syscall.SYS_WRITE, fd, p) }

func call(number, fd uintptr, p []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall(number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), nil
		case syscall.EINTR:
			continue
		}
		return 0, errno
	}
}

// Again reports whether a call has nothing to tell yet.
func Again(err error) bool { return errors.Is(err, syscall.EAGAIN) }
