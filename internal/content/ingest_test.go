package content_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

const piece = 1000

func pieces(n int) (out content.Ranges) {
	for at := 0; at < n; at += piece {
		out = append(out, content.Range{Start: int64(at), End: int64(min(at+piece, n))})
	}
	return out
}

// fill writes what the ingest misses, in an order of its own, and returns how many
// bytes that were.
func fill(in *content.Ingest, data []byte, most int) (wrote int64, err error) {
	all := pieces(len(data))
	for i := range all {
		r := all[(i*7+3)%len(all)]
		if in.Has(r) || most == 0 {
			continue
		}
		most--
		p := data[r.Start:r.End]
		if _, err := in.WriteAt(p, r.Start); err != nil {
			return wrote, err
		}
		if err := in.Accept(r, sha256.Sum256(p)); err != nil {
			return wrote, err
		}
		wrote += r.Len()
	}
	return wrote, nil
}

func TestIngestSurvivesAPowerCutAtEveryStep(t *testing.T) {
	t.Parallel()
	data := sample(10*piece+17, 5)
	d := atelier.DigestOf(data)
	fetch := func(disk *durabletest.Disk) error {
		s, err := content.Open(disk, "/content", content.WithCheckpoint(2*piece, time.Hour))
		if err != nil {
			return err
		}
		in, err := s.Ingest(d, int64(len(data)))
		if atelier.CodeOf(err) == atelier.Exists {
			return s.Keep(d)
		}
		if err != nil {
			return err
		}
		if _, err := fill(in, data, 5); err != nil {
			return err
		}
		if err := in.Close(); err != nil {
			return err
		}
		if in, err = s.Ingest(d, int64(len(data))); err != nil {
			return err
		}
		if _, err := fill(in, data, -1); err != nil {
			return err
		}
		_, err = in.Commit(context.Background())
		return err
	}
	survives(t, fetch, func(disk *durabletest.Disk, done bool) error {
		if err := intact(t, open(t, disk), d, data, done); err != nil {
			return err
		}
		// A false claim of the record would make this Corrupt.
		if err := fetch(disk); err != nil {
			return err
		}
		s := open(t, disk)
		if left := files(t, disk, "/content/ingest"); len(left) > 0 {
			return errors.New("left behind: " + left[0])
		}
		return intact(t, s, d, data, true)
	})
}

func TestIngestFailsAtEveryStepWithAnErrorAndGoesOn(t *testing.T) {
	t.Parallel()
	data := sample(10*piece, 6)
	d := atelier.DigestOf(data)
	for n := 1; ; n++ {
		disk := durabletest.NewDisk()
		s := open(t, disk, content.WithCheckpoint(2*piece, time.Hour))
		fault := errors.New("fault")
		disk.FailAt(n, fault)
		attempt := func() error {
			in, err := s.Ingest(d, int64(len(data)))
			if atelier.CodeOf(err) == atelier.Exists {
				return nil
			}
			if err != nil {
				return err
			}
			if _, err := fill(in, data, -1); err != nil {
				return errors.Join(err, in.Close())
			}
			_, err = in.Commit(t.Context())
			return errors.Join(err, in.Close())
		}
		err := attempt()
		if err != nil && !errors.Is(err, fault) {
			t.Fatalf("step %d: %v", n, err)
		}
		if err := intact(t, s, d, data, false); err != nil {
			t.Fatalf("step %d: %v", n, err)
		}
		failed := err != nil
		if err := attempt(); err != nil {
			t.Fatalf("step %d: the second attempt: %v", n, err)
		}
		if err := intact(t, s, d, data, true); err != nil {
			t.Fatalf("step %d: %v", n, err)
		}
		if !failed {
			if n < 15 {
				t.Fatalf("only %d steps were seen", n)
			}
			return
		}
	}
}

func TestIngestResumesWhereItStopped(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	data := sample(20*piece, 7)
	d := atelier.DigestOf(data)
	s := open(t, disk)
	in, err := s.Ingest(d, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ingest(d, int64(len(data))); atelier.CodeOf(err) != atelier.InUse {
		t.Fatalf("two ingests of one content: %v", err)
	}
	wantCode(t, s.Abort(d), atelier.InUse)
	wrote, err := fill(in, data, 12)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	disk.Restart(nil)
	s = open(t, disk)
	if in, err = s.Ingest(d, int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if in.Done() != wrote {
		t.Fatalf("%d bytes are left of %d", in.Done(), wrote)
	}
	_, err = in.Commit(t.Context())
	wantCode(t, err, atelier.Conflict)
	rest, err := fill(in, data, -1)
	if err != nil || wrote+rest != int64(len(data)) {
		t.Fatalf("wrote %d and %d of %d bytes, %v", wrote, rest, len(data), err)
	}
	if _, err := in.WriteAt([]byte("x"), 5); atelier.CodeOf(err) != atelier.Conflict {
		t.Fatalf("accepted bytes were written over: %v", err)
	}
	if _, err := in.WriteAt([]byte("x"), int64(len(data))); atelier.CodeOf(err) != atelier.Invalid {
		t.Fatalf("bytes past the end were taken: %v", err)
	}
	if _, err := in.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ingest(d, int64(len(data))); atelier.CodeOf(err) != atelier.Exists {
		t.Fatalf("got %v, want Exists", err)
	}
}

func TestIngestNeverCommitsWrongContent(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	data := sample(3*piece, 8)
	d := atelier.DigestOf([]byte("something else"))
	s := open(t, disk)
	in, err := s.Ingest(d, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	r := content.Range{Start: 0, End: piece}
	if _, err := in.WriteAt(data[:piece], 0); err != nil {
		t.Fatal(err)
	}
	wantCode(t, in.Accept(r, sha256.Sum256([]byte("no"))), atelier.Corrupt)
	if in.Has(r) || in.Done() != 0 {
		t.Fatal("wrong bytes were accepted")
	}
	if _, err := fill(in, data, -1); err != nil {
		t.Fatal(err)
	}
	_, err = in.Commit(t.Context())
	wantCode(t, err, atelier.Corrupt)
	if left := files(t, disk, "/content"); len(left) > 0 {
		t.Fatalf("%v stayed", left)
	}
}
