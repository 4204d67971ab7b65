package content_test

import (
	"crypto/sha256"
	"io/fs"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

// stuck is a disk on which syncing the data of ingests takes until sync is closed.
type stuck struct {
	*durabletest.Disk
	sync chan struct{}
}

type stuckFile struct {
	durable.File
	sync chan struct{}
}

func (s stuck) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	f, err := s.Disk.OpenFile(name, flag, perm)
	if err == nil && strings.HasSuffix(name, ".data") {
		f = stuckFile{f, s.sync}
	}
	return f, err
}

func (f stuckFile) Sync() error {
	<-f.sync
	return f.File.Sync()
}

// While the disk syncs, more comes in; and nothing that came in since is claimed.
func TestCheckpointHoldsNothingUp(t *testing.T) {
	t.Parallel()
	disk := stuck{durabletest.NewDisk(), make(chan struct{})}
	data := sample(8*piece, 30)
	d := atelier.DigestOf(data)
	s, err := content.Open(disk, "/content", content.WithCheckpoint(4*piece, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.Ingest(d, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range pieces(7 * piece) {
		if _, err := in.WriteAt(data[r.Start:r.End], r.Start); err != nil {
			t.Fatal(err)
		}
		if err := in.Accept(r, sha256.Sum256(data[r.Start:r.End])); err != nil { // waits for ever where it syncs
			t.Fatal(err)
		}
	}
	if in.Done() != 7*piece {
		t.Errorf("%d bytes are accepted", in.Done())
	}
	// The program is killed; the record speaks of nothing that was not synced.
	disk.Restart(nil)
	close(disk.sync)
	s = open(t, disk.Disk)
	if in, err = s.Ingest(d, int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if in.Done() != 0 {
		t.Errorf("%d bytes are claimed that were never synced", in.Done())
	}
	if _, err := fill(in, data, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}
