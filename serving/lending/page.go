package lending

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	atelier "github.com/atelier-edge/atelier"
)

// The states of a loan. While a loan is idle the module has no byte of it.
const (
	idle      = iota // between two requests
	handed           // with the first request, which the module has not looked at
	taken            // the module has bytes of a request
	whole            // it has one request, and not a byte more
	answering        // bytes of an answer may be out
)

// maxBuckets is how many buckets of a histogram fit the page.
const maxBuckets = 64

// slot is one loan's place in the page.
type slot struct {
	state    atomic.Uint32
	recalled atomic.Uint32 // not 0: no request may begin
	answered atomic.Uint32 // requests of this loan
	_        uint32
	since    atomic.Int64 // when the request in progress began, in Unix nanoseconds
}

// layout is what both sides see. It is part of the protocol: a change needs a new
// version.
type layout struct {
	requests [6]atomic.Uint64 // by the first digit of the status
	nanos    atomic.Uint64    // sum of all latencies
	buckets  [maxBuckets]atomic.Uint64
	slots    [MaxLoans]slot
}

// page is a mapped layout.
type page struct {
	*layout
	mem []byte
}

const pageSize = int(unsafe.Sizeof(layout{}))

// seals keep a module from shrinking the page under the gateway.
const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// newPage makes a page and the descriptor by which another process maps it.
func newPage() (*page, *os.File, error) {
	fd, err := unix.MemfdCreate("atelier-lending", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, fmt.Errorf("make shared memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "atelier-lending")
	err = unix.Ftruncate(fd, int64(pageSize))
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make shared memory: %w", err), f.Close())
	}
	p, err := mapPage(f)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return p, f, nil
}

// mapPage maps the page behind f, which is the caller's.
func mapPage(f *os.File) (*page, error) {
	bad := func(err error) (*page, error) { return nil, fmt.Errorf("map shared memory: %w", err) }
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return bad(err)
	}
	have, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return bad(err)
	}
	if stat.Size != int64(pageSize) || have&unix.F_SEAL_SHRINK == 0 {
		return bad(fmt.Errorf("it has %d bytes and seals %#x, a sealed page of %d bytes was expected", stat.Size, have, pageSize))
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return bad(err)
	}
	return &page{layout: (*layout)(unsafe.Pointer(unsafe.SliceData(mem))), mem: mem}, nil
}

func (p *page) unmap() {
	_ = unix.Munmap(p.mem) // it was mapped by mapPage
}

// record counts one answer.
func (p *page) record(status int, took time.Duration, bounds []float64) {
	if class := status / 100; class > 0 && class < len(p.requests) {
		p.requests[class].Add(1)
	}
	i, seconds := 0, took.Seconds()
	for i < len(bounds) && seconds > bounds[i] {
		i++
	}
	p.buckets[i].Add(1)
	p.nanos.Add(uint64(max(took, 0)))
}

// Counts are what a module has answered on lent connections.
type Counts struct {
	Requests [6]uint64 // by the first digit of the status
	Buckets  []uint64  // one more than the terms' bounds; not cumulative
	Nanos    uint64    // sum of all latencies
	InFlight int       // requests that are with the module
}

// counts reads the page; what is in flight is not its own to say.
func (p *page) counts(buckets int) Counts {
	c := Counts{Buckets: make([]uint64, buckets), Nanos: p.nanos.Load()}
	for i := range c.Requests {
		c.Requests[i] = p.requests[i].Load()
	}
	for i := range c.Buckets {
		c.Buckets[i] = p.buckets[i].Load()
	}
	return c
}

// check refuses terms that do not fit the page, or a request's head.
func (t *Terms) check() error {
	switch {
	case t.Version != version:
		return atelier.Errorf(atelier.Unsupported, "version %d of lending is not spoken here, %d is", t.Version, version)
	case len(t.Bounds) >= maxBuckets:
		return atelier.Errorf(atelier.Invalid, "%d bounds of latencies came, fewer than %d were expected", len(t.Bounds), maxBuckets)
	case t.Answer <= 0 || t.Write <= 0 || t.Idle <= 0 || t.MaxBody < 0:
		return atelier.Errorf(atelier.Invalid, "times and limits must be positive")
	case t.Model != "" && !token(strings.Replace(t.Model, ":", "", 1)):
		return atelier.Errorf(atelier.Invalid, "model %.80q must be a plain name with a version", t.Model)
	case !token(t.Endpoint) || !token(t.Rollout):
		return atelier.Errorf(atelier.Invalid, "endpoint %.80q and rollout %.80q must be plain names", t.Endpoint, t.Rollout)
	}
	return nil
}
