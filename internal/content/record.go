package content

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
)

// The record of an ingest is a log: a header, then one entry for each range that
// is verified and synced. It is only ever appended to, after the data was synced;
// a power cut can tear its end, which the entries' checksums show.
//
//	header: magic (8), size (8), digest (32), CRC-32C of these (4)
//	entry:  start (8), end (8), CRC-32C of digest, start and end (4)
//
// Numbers are big-endian. The digest in each sum tells apart what a disk block
// held for another ingest.
const (
	recordMagic  = "atelrec1"
	recordHeader = len(recordMagic) + 8 + sha256.Size + 4
	recordEntry  = 8 + 8 + 4
	// maxRecord bounds what is read of a record, in bytes: 200,000 entries.
	maxRecord = 4 << 20
)

type sum = [sha256.Size]byte

func appendHeader(b []byte, digest sum, size int64) []byte {
	at := len(b)
	b = append(b, recordMagic...)
	b = binary.BigEndian.AppendUint64(b, uint64(size))
	b = append(b, digest[:]...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

func appendEntry(b []byte, digest sum, r Range) []byte {
	at := len(b)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Start))
	b = binary.BigEndian.AppendUint64(b, uint64(r.End))
	return binary.BigEndian.AppendUint32(b, entrySum(digest, b[at:]))
}

func entrySum(digest sum, entry []byte) uint32 {
	return crc32.Update(crc32.Checksum(digest[:], castagnoli), castagnoli, entry)
}

// decodeRecord returns the ranges that the record of an ingest claims, and how
// many of its bytes are good: what follows them is dropped. good is 0 where it is
// no record of that ingest.
func decodeRecord(b []byte, digest sum, size int64) (done Ranges, good int) {
	if len(b) < recordHeader || string(b[:recordHeader]) != string(appendHeader(nil, digest, size)) {
		return nil, 0
	}
	good = recordHeader
	for len(b)-good >= recordEntry {
		e := b[good : good+recordEntry]
		r := Range{int64(binary.BigEndian.Uint64(e)), int64(binary.BigEndian.Uint64(e[8:]))}
		if binary.BigEndian.Uint32(e[16:]) != entrySum(digest, e[:16]) ||
			r.Start < 0 || r.Start >= r.End || r.End > size {
			break
		}
		done = done.Add(r)
		good += recordEntry
	}
	return done, good
}
