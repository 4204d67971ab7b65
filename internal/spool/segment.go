package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Batch is what lies in the spool as one and goes to the hub in one frame: a round of
// measurements, some records of requests, some messages.
type Batch struct {
	Taken    wire.Clock
	Encoding wire.Encoding
	Payload  []byte // encoded as Encoding says; at most wire.MaxTelemetryPayload
	Samples  int    // how many measurements, records or messages it holds
}

// A segment is a file of records, named by the number of the first that it may
// hold, in 16 hex digits, and ".seg". A record is, all numbers big-endian:
//
//	0   length of what follows the checksum, 4 bytes
//	4   CRC-32C of what follows, 4 bytes
//	8   sequence, 8 bytes
//	16  samples, 4 bytes
//	20  encoding, 1 byte
//	21  length of the boot id, 1 byte; boot id
//	    milliseconds since boot, 8 bytes; milliseconds since 1970, 8 bytes
//	    payload
const (
	segmentSuffix = ".seg"
	recordHead    = 8
	recordFixed   = 8 + 4 + 1 + 1 + 8 + 8
	maxRecord     = recordFixed + math.MaxUint8 + wire.MaxTelemetryPayload
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errDamaged says that a record is not what was written.
var errDamaged = errors.New("record is damaged")

// segment describes one file of the spool. It is empty when last < first.
type segment struct {
	path        string
	first, last uint64 // numbers; first is the file's name
	records     int
	samples     int
	size        int64     // bytes of whole records
	newest      time.Time // the latest wall clock in it
}

func segmentPath(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%016x", first)+segmentSuffix)
}

// segmentName reads a segment's first number out of its file name.
func segmentName(name string) (first uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	first, err := strconv.ParseUint(digits, 16, 64)
	return first, err == nil && first > 0
}

func appendRecord(dst []byte, sequence uint64, b Batch) []byte {
	begin := len(dst)
	dst = append(dst, make([]byte, recordHead)...)
	dst = binary.BigEndian.AppendUint64(dst, sequence)
	dst = binary.BigEndian.AppendUint32(dst, uint32(b.Samples))
	dst = append(dst, byte(b.Encoding), byte(len(b.Taken.BootID)))
	dst = append(dst, b.Taken.BootID...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(b.Taken.Monotone.Milliseconds()))
	dst = binary.BigEndian.AppendUint64(dst, uint64(b.Taken.Wall.UnixMilli()))
	dst = append(dst, b.Payload...)
	body := dst[begin+recordHead:]
	binary.BigEndian.PutUint32(dst[begin:], uint32(len(body)))
	binary.BigEndian.PutUint32(dst[begin+4:], crc32.Checksum(body, castagnoli))
	return dst
}

// readRecord reads the record at off. It returns io.EOF at the segment's end,
// errDamaged for what is no whole record, and other errors where reading failed.
func readRecord(f durable.File, off int64) (sequence uint64, b Batch, size int64, err error) {
	var head [recordHead]byte
	n, err := f.ReadAt(head[:], off)
	if n < recordHead {
		if errors.Is(err, io.EOF) && n > 0 {
			err = errDamaged
		}
		return 0, b, 0, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length < recordFixed || length > maxRecord {
		return 0, b, 0, errDamaged
	}
	body := make([]byte, length)
	if n, err = f.ReadAt(body, off+recordHead); n < len(body) {
		if errors.Is(err, io.EOF) {
			err = errDamaged
		}
		return 0, b, 0, err
	}
	boot := int(body[13])
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(head[4:]) || len(body) < recordFixed+boot {
		return 0, b, 0, errDamaged
	}
	sequence = binary.BigEndian.Uint64(body)
	b.Samples = int(binary.BigEndian.Uint32(body[8:]))
	b.Encoding = wire.Encoding(body[12])
	rest := body[14:]
	b.Taken.BootID, rest = string(rest[:boot]), rest[boot:]
	b.Taken.Monotone = time.Duration(binary.BigEndian.Uint64(rest)) * time.Millisecond
	b.Taken.Wall = time.UnixMilli(int64(binary.BigEndian.Uint64(rest[8:]))).UTC()
	b.Payload = rest[16:]
	return sequence, b, recordHead + int64(length), nil
}

// scan reads a segment up to its end or the first damaged record. cut is how
// many bytes lie after the last whole record.
func scan(fsys durable.FS, path string, first uint64, visit func(sequence uint64, b Batch)) (s segment, cut int64, err error) {
	s = segment{path: path, first: first, last: first - 1}
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return s, 0, err
	}
	defer f.Close() // only read
	info, err := f.Stat()
	if err != nil {
		return s, 0, err
	}
	for {
		sequence, b, size, err := readRecord(f, s.size)
		if err == nil && sequence <= s.last {
			err = errDamaged // numbers only grow
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, errDamaged):
			return s, info.Size() - s.size, nil
		case err != nil:
			return s, 0, err
		}
		s.add(sequence, b, size)
		if visit != nil {
			visit(sequence, b)
		}
	}
}

// beyond returns how many numbers were used behind the last whole record of a
// damaged segment: one, or up to the last record that is still readable there.
func beyond(fsys durable.FS, s segment) (uint64, error) {
	f, err := fsys.OpenFile(s.path, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close() // only read
	highest := s.last
	for off := s.size + 1; ; off++ {
		sequence, _, size, err := readRecord(f, off)
		switch {
		case errors.Is(err, io.EOF):
			return highest - s.last + 1, nil
		case errors.Is(err, errDamaged):
			continue
		case err != nil:
			return 0, err
		}
		highest = max(highest, sequence)
		off += size - 1
	}
}

func (s *segment) add(sequence uint64, b Batch, size int64) {
	s.last = sequence
	s.records++
	s.samples += b.Samples
	s.size += size
	if b.Taken.Wall.After(s.newest) {
		s.newest = b.Taken.Wall
	}
}
