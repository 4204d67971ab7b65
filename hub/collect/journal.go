package collect

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

// record is a batch in the journal.
type record struct {
	Workspace string        `json:"workspace"` // ids
	Device    string        `json:"device"`
	Name      string        `json:"name"` // of the device
	Stream    string        `json:"stream"`
	Sequence  uint64        `json:"sequence"`
	Received  int64         `json:"received"` // milliseconds since 1970
	Encoding  wire.Encoding `json:"encoding"`
	Payload   []byte        `json:"-"` // none of a batch that was refused
}

// In a file, a record is, numbers big-endian: length of what follows the checksum, 4
// bytes; CRC-32C of it, 4 bytes; length of the JSON, 4 bytes; the record as JSON; the payload.
const (
	journalSuffix = ".journal"
	maxRecord     = 4 + 4096 + wire.MaxPacket
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (r *record) encode(dst []byte) ([]byte, error) {
	head, err := json.Marshal(r)
	if err != nil {
		return dst, err
	}
	size := 4 + len(head) + len(r.Payload)
	if size > maxRecord {
		return dst, atelier.Errorf(atelier.TooLarge, "a batch of records has %d bytes, at most %d are allowed", size, maxRecord)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(size))
	begin := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(head)))
	dst = append(append(dst, head...), r.Payload...)
	binary.BigEndian.PutUint32(dst[begin:], crc32.Checksum(dst[begin+4:], castagnoli))
	return dst, nil
}

// readRecord reads the next record; io.EOF at the end, or where the rest is torn: of that
// nobody was told that it is stored.
func readRecord(from io.Reader) (r record, err error) {
	var head [12]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return r, end(err)
	}
	length, text := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[8:])
	if length < 4 || length > maxRecord || text > length-4 {
		return r, io.EOF
	}
	body := make([]byte, length-4)
	if _, err := io.ReadFull(from, body); err != nil {
		return r, end(err)
	}
	sum := crc32.Update(crc32.Checksum(head[8:], castagnoli), castagnoli, body)
	if sum != binary.BigEndian.Uint32(head[4:]) || json.Unmarshal(body[:text], &r) != nil {
		return r, io.EOF
	}
	r.Payload = body[text:]
	return r, nil
}

func end(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF
	}
	return err
}

// journal is an append-only log over numbered files. Batches that come together share
// one sync.
type journal struct {
	fs    durable.FS
	dir   string
	queue chan *pending
	done  chan struct{}

	mu     sync.Mutex // held while writing, and while a new file begins
	file   durable.File
	number uint64
	size   int64 // bytes of whole, synced records
	failed bool  // the file's end is not known; the next write begins a new one

	closing sync.RWMutex // held for reading while something is queued
	closed  bool
}

type pending struct {
	bytes []byte
	err   chan error
}

// maxGroup is how many bytes are synced at once at most.
const maxGroup = 4 << 20

// openJournal calls replay with every record that is in the journal, in order, and begins
// a new file behind them.
func openJournal(fsys durable.FS, dir string, replay func(r *record, size int64)) (*journal, error) {
	if err := durable.MkdirAll(fsys, dir, 0o700); err != nil {
		return nil, err
	}
	j := &journal{fs: fsys, dir: dir, queue: make(chan *pending, 64), done: make(chan struct{})}
	numbers, err := j.files()
	if err != nil {
		return nil, err
	}
	for _, n := range numbers {
		err := j.each(n, func(r *record) error {
			_, size, _ := r.batch() // of one that cannot be read nothing becomes a file
			replay(r, size)
			return nil
		})
		if err != nil {
			return nil, err
		}
		j.number = n
	}
	if err := j.roll(); err != nil {
		return nil, err
	}
	go j.write()
	return j, nil
}

func (j *journal) path(number uint64) string {
	return filepath.Join(j.dir, fmt.Sprintf("%012d", number)+journalSuffix)
}

// files returns the numbers of the journal's files in order.
func (j *journal) files() (numbers []uint64, err error) {
	list, err := j.fs.ReadDir(j.dir) // sorted
	if err != nil {
		return nil, durable.Explain(err, "read "+j.dir)
	}
	for _, e := range list {
		if digits, ok := strings.CutSuffix(e.Name(), journalSuffix); ok {
			if n, err := strconv.ParseUint(digits, 10, 64); err == nil {
				numbers = append(numbers, n)
			}
		}
	}
	return numbers, nil
}

// each calls fn with every record of a file, in order.
func (j *journal) each(number uint64, fn func(*record) error) error {
	f, err := j.fs.OpenFile(j.path(number), os.O_RDONLY, 0)
	if err != nil {
		return durable.Explain(err, "read the journal of collected records")
	}
	defer f.Close() // only read
	from := bufio.NewReaderSize(io.NewSectionReader(f, 0, 1<<62), 256<<10)
	for {
		r, err := readRecord(from)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return durable.Explain(err, "read the journal of collected records")
		}
		if err := fn(&r); err != nil {
			return err
		}
	}
}

// roll begins a new file. j.mu is held, or nobody else has j yet.
func (j *journal) roll() error {
	path := j.path(j.number + 1)
	f, err := j.fs.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		if err = j.fs.SyncDir(j.dir); err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		return durable.Explain(err, "begin the journal "+path)
	}
	if j.file != nil {
		err = j.file.Close() // all that counts in it was synced
	}
	j.number++
	j.file, j.size, j.failed = f, 0, false
	return durable.Explain(err, "close the journal of collected records")
}

// append returns when r is on disk. After an error it may be there or not: a record that
// comes again is known by its number.
func (j *journal) append(ctx context.Context, r *record) error {
	b, err := r.encode(nil)
	if err != nil {
		return err
	}
	p := &pending{bytes: b, err: make(chan error, 1)}
	j.closing.RLock()
	defer j.closing.RUnlock()
	if j.closed {
		return atelier.Errorf(atelier.Unavailable, "the store of collected records is closed")
	}
	select {
	case j.queue <- p:
	case <-ctx.Done():
		return atelier.Errorf(atelier.Unavailable, "the records were not stored: %w", ctx.Err())
	}
	return <-p.err // the writer answers each, soon
}

// write writes what waits, a group at a time, until the queue is closed.
func (j *journal) write() {
	defer close(j.done)
	var group []*pending
	var buffer []byte
	for first := range j.queue {
		group, buffer = append(group[:0], first), append(buffer[:0], first.bytes...)
	more:
		for len(buffer) < maxGroup {
			select {
			case p, open := <-j.queue:
				if !open {
					break more
				}
				group, buffer = append(group, p), append(buffer, p.bytes...)
			default:
				break more
			}
		}
		err := j.put(buffer)
		for _, p := range group {
			p.err <- err
		}
	}
}

// put writes and syncs b.
func (j *journal) put(b []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed {
		if err := j.roll(); err != nil {
			return err
		}
	}
	_, err := j.file.WriteAt(b, j.size)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		// A later sync may succeed without having written what this one did not.
		j.failed = true
		return durable.Explain(err, "write the journal of collected records")
	}
	j.size += int64(len(b))
	return nil
}

// rotate begins a new file and returns the numbers of those before it.
func (j *journal) rotate() ([]uint64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.size > 0 || j.failed {
		if err := j.roll(); err != nil {
			return nil, err
		}
	}
	numbers, err := j.files()
	for i, n := range numbers {
		if n >= j.number {
			return numbers[:i], err
		}
	}
	return numbers, err
}

func (j *journal) remove(number uint64) error { return durable.Remove(j.fs, j.path(number)) }

// close waits for what was appended and closes the file. What is appended after it fails.
func (j *journal) close() error {
	j.closing.Lock()
	defer j.closing.Unlock()
	if j.closed {
		return nil
	}
	j.closed = true
	close(j.queue)
	<-j.done
	return durable.Explain(j.file.Close(), "close the journal of collected records")
}
