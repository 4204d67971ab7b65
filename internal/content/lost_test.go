package content_test

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

// lose removes the data of the only ingest and leaves its record.
func lose(t *testing.T, disk *durabletest.Disk) {
	t.Helper()
	for _, f := range files(t, disk, "/content/ingest") {
		if strings.HasSuffix(f, ".data") {
			if err := durable.Remove(disk, f); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A record whose data was lost must not come back, after one more power cut, to
// speak of data that is new.
func TestRecordOfLostDataStaysAway(t *testing.T) {
	t.Parallel()
	data := sample(8*piece, 20)
	d := atelier.DigestOf(data)
	for seed := range uint64(50) {
		disk := durabletest.NewDisk()
		begin := func() (*content.Store, *content.Ingest) {
			s := open(t, disk, content.WithCheckpoint(1<<20, time.Hour))
			in, err := s.Ingest(d, int64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			return s, in
		}
		_, in := begin()
		if _, err := fill(in, data, 5); err != nil {
			t.Fatal(err)
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		lose(t, disk)
		begin()
		disk.Restart(rand.New(rand.NewPCG(seed, 0)))
		s, in := begin()
		if _, err := fill(in, data, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := in.Commit(t.Context()); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !bytes.Equal(read(t, s, d), data) {
			t.Fatalf("seed %d: wrong content", seed)
		}
	}
}

func TestUploadRecordOfLostDataStaysAway(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	begin := func() (*content.Store, *content.Writer) {
		s := open(t, disk)
		w, err := s.Writer("up")
		if err != nil {
			t.Fatal(err)
		}
		return s, w
	}
	_, w := begin()
	if _, err := w.Write(sample(20_000, 21)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	lose(t, disk)
	data := sample(25_000, 22)
	_, w = begin()
	if w.Offset() != 0 {
		t.Fatalf("resumes at %d without data", w.Offset())
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	s, w := begin() // the program was killed: no power cut, no Close
	if _, err := w.Write(data[w.Offset():]); err != nil {
		t.Fatal(err)
	}
	info, err := w.Commit("", -1)
	if err != nil {
		t.Fatal(err)
	}
	if info.Digest != atelier.DigestOf(data) || !bytes.Equal(read(t, s, info.Digest), data) {
		t.Fatalf("%s is not the digest of the content", info.Digest)
	}
}
