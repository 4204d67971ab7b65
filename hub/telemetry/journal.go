package telemetry

import (
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

// The TSDB syncs its write-ahead log only when one of its 128 MiB files is full,
// so that what it has committed may be gone after a power cut. The journal is
// what makes an acknowledgement true: a frame is in it, synced, before it goes to
// the TSDB, with everything that decides what it becomes there. When the hub
// starts, what the TSDB's log is not certain to hold is applied again.
//
// Frames that come together share one sync. A checkpoint (checkpoint.go) syncs
// the TSDB's log itself, and removes the journal's older files.

// record is a frame in the journal.
type record struct {
	Workspace string        `json:"workspace"`
	Device    string        `json:"device"`
	Name      string        `json:"name"` // of the device
	Stream    string        `json:"stream"`
	Sequence  uint64        `json:"sequence"`
	Lost      uint64        `json:"lost,omitempty"` // batches before it that never came
	Received  int64         `json:"received"`       // milliseconds since 1970
	Shift     int64         `json:"shift"`          // milliseconds to add to its times
	Encoding  wire.Encoding `json:"encoding"`
	Payload   []byte        `json:"-"`
}

// In a file, a record is, numbers big-endian: length of what follows the
// checksum, 4 bytes; CRC-32C of it, 4 bytes; length of the JSON, 4 bytes; the
// record as JSON; the payload.
const (
	journalSuffix = ".journal"
	recordHead    = 8
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
		return dst, atelier.Errorf(atelier.TooLarge, "telemetry record has %d bytes, at most %d are allowed", size, maxRecord)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(size))
	begin := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(head)))
	dst = append(dst, head...)
	dst = append(dst, r.Payload...)
	binary.BigEndian.PutUint32(dst[begin:], crc32.Checksum(dst[begin+4:], castagnoli))
	return dst, nil
}

// decodeRecord reads the first record in b. It returns io.EOF where b is empty and
// io.ErrUnexpectedEOF where it does not begin with a whole record.
func decodeRecord(b []byte) (r record, size int, err error) {
	if len(b) == 0 {
		return r, 0, io.EOF
	}
	if len(b) < recordHead {
		return r, 0, io.ErrUnexpectedEOF
	}
	length := binary.BigEndian.Uint32(b)
	if length < 4 || length > maxRecord || int(length) > len(b)-recordHead {
		return r, 0, io.ErrUnexpectedEOF
	}
	body := b[recordHead : recordHead+int(length)]
	head := binary.BigEndian.Uint32(body)
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[4:]) || int64(head) > int64(len(body)-4) {
		return r, 0, io.ErrUnexpectedEOF
	}
	if err := json.Unmarshal(body[4:4+head], &r); err != nil {
		return r, 0, io.ErrUnexpectedEOF
	}
	r.Payload = body[4+head:]
	return r, recordHead + int(length), nil
}

// journal is an append-only log over numbered files.
type journal struct {
	fs    durable.FS
	dir   string
	queue chan *waiting
	done  chan struct{}

	mu     sync.Mutex // held while writing, and while a new file begins
	file   durable.File
	number uint64 // of the file
	size   int64  // bytes of whole, synced records in it
	failed error  // why the file's end is not known; the next write begins a new one
}

type waiting struct {
	bytes []byte
	err   chan error
}

// maxGroup is how many bytes are synced at once at most.
const maxGroup = 4 << 20

func journalPath(dir string, number uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%012d", number)+journalSuffix)
}

// openJournal calls replay with every record in the journal, in order, and
// begins a new file behind them.
func openJournal(fsys durable.FS, dir string, replay func(*record) error) (*journal, error) {
	if err := durable.MkdirAll(fsys, dir, 0o700); err != nil {
		return nil, err
	}
	j := &journal{fs: fsys, dir: dir, queue: make(chan *waiting, 256), done: make(chan struct{})}
	numbers, err := j.files()
	if err != nil {
		return nil, err
	}
	for _, n := range numbers {
		b, err := durable.ReadFile(fsys, journalPath(dir, n))
		if err != nil {
			return nil, err
		}
		for {
			r, size, err := decodeRecord(b)
			if err != nil {
				break // the end, or a torn one that nobody was told about
			}
			if err := replay(&r); err != nil {
				return nil, err
			}
			b = b[size:]
		}
		j.number = n
	}
	if err := j.roll(); err != nil {
		return nil, err
	}
	go j.write()
	return j, nil
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

// roll begins a new file. j.mu is held, or nobody else has j yet.
func (j *journal) roll() error {
	path := journalPath(j.dir, j.number+1)
	f, err := j.fs.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		if err = j.fs.SyncDir(j.dir); err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		return durable.Explain(err, "begin the telemetry journal "+path)
	}
	if j.file != nil {
		err = j.file.Close() // all that counts in it was synced
	}
	j.number++
	j.file, j.size, j.failed = f, 0, nil
	return durable.Explain(err, "close the telemetry journal")
}

// append returns when r is on disk. After an error it may be there or not.
func (j *journal) append(ctx context.Context, r *record) error {
	b, err := r.encode(nil)
	if err != nil {
		return err
	}
	w := &waiting{bytes: b, err: make(chan error, 1)}
	select {
	case j.queue <- w:
	case <-ctx.Done():
		return atelier.Errorf(atelier.Unavailable, "the telemetry frame was not stored: %w", ctx.Err())
	}
	return <-w.err // the writer answers each, soon
}

// write writes what waits, a group at a time, until the queue is closed.
func (j *journal) write() {
	defer close(j.done)
	var group []*waiting
	var buffer []byte
	for first := range j.queue {
		group, buffer = append(group[:0], first), append(buffer[:0], first.bytes...)
	more:
		for len(buffer) < maxGroup {
			select {
			case w, open := <-j.queue:
				if !open {
					break more
				}
				group, buffer = append(group, w), append(buffer, w.bytes...)
			default:
				break more
			}
		}
		err := j.put(buffer)
		for _, w := range group {
			w.err <- err
		}
	}
}

// put writes and syncs b.
func (j *journal) put(b []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed != nil {
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
		j.failed = err
		return durable.Explain(err, "write the telemetry journal")
	}
	j.size += int64(len(b))
	return nil
}

// rotate begins a new file and returns its number: what is in files before it
// was appended before. It does nothing where the present one is empty.
func (j *journal) rotate() (uint64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.size == 0 && j.failed == nil {
		return j.number, nil
	}
	err := j.roll()
	return j.number, err
}

// remove removes the files before number.
func (j *journal) remove(number uint64) error {
	numbers, err := j.files()
	for _, n := range numbers {
		if n < number {
			err = errors.Join(err, durable.Remove(j.fs, journalPath(j.dir, n)))
		}
	}
	return err
}

// bytes returns the size of the present file.
func (j *journal) bytes() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size
}

// close waits for what was appended and closes the file. Nothing is appended after it.
func (j *journal) close() error {
	close(j.queue)
	<-j.done
	return durable.Explain(j.file.Close(), "close the telemetry journal")
}
