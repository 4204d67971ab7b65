package content_test

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

func TestWriterCommitsByDigest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := content.Open(durable.OS{}, dir)
	if err != nil {
		t.Fatal(err)
	}
	data := sample(300_000, 1)
	want := atelier.DigestOf(data)
	w, err := s.Writer("")
	if err != nil {
		t.Fatal(err)
	}
	for rest := data; len(rest) > 0; {
		n := min(7001, len(rest))
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if has, err := s.Has(want); has || err != nil {
		t.Fatalf("visible before the commit: %v, %v", has, err)
	}
	info, err := w.Commit(want, int64(len(data)))
	if err != nil || info.Digest != want || info.Size != int64(len(data)) {
		t.Fatalf("got %+v, %v", info, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, s, want), data) {
		t.Fatal("the content changed")
	}
	list := files(t, durable.OS{}, dir)
	if len(list) != 1 {
		t.Fatalf("files: %v", list)
	}
	if st, err := os.Stat(list[0]); err != nil || st.Mode().Perm() != 0o444 {
		t.Fatalf("mode %v, %v; want read-only", st.Mode(), err)
	}
	if put(t, s, data) != want || len(files(t, durable.OS{}, dir)) != 1 {
		t.Fatal("the same content is there twice")
	}
	if err := s.Verify(t.Context(), want); err != nil {
		t.Fatal(err)
	}
}

func TestWrongContentLeavesNothing(t *testing.T) {
	t.Parallel()
	data := sample(1000, 2)
	for name, c := range map[string]struct {
		digest atelier.Digest
		size   int64
	}{
		"digest": {atelier.DigestOf([]byte("other")), -1},
		"size":   {atelier.DigestOf(data), 999},
	} {
		disk := durabletest.NewDisk()
		s := open(t, disk)
		w, err := s.Writer("upload-1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		_, err = w.Commit(c.digest, c.size)
		wantCode(t, err, atelier.Corrupt)
		if left := files(t, disk, "/content"); len(left) > 0 {
			t.Fatalf("%s: %v stayed", name, left)
		}
		if _, err := w.Write(data); err == nil {
			t.Fatalf("%s: a writer that ended took bytes", name)
		}
	}
}

func TestWriterResumesAfterRestart(t *testing.T) {
	t.Parallel()
	disk := durabletest.NewDisk()
	data := sample(50_000, 3)
	s := open(t, disk, content.WithCheckpoint(10_000, time.Hour))
	w, err := s.Writer("upload-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Writer("upload-1"); atelier.CodeOf(err) != atelier.InUse {
		t.Fatalf("two writers of one upload: %v", err)
	}
	for at := 0; at < 25_000; at += 1000 {
		if _, err := w.Write(data[at : at+1000]); err != nil {
			t.Fatal(err)
		}
	}
	disk.Restart(nil) // without Close: what the last checkpoint covered is left
	s = open(t, disk)
	if w, err = s.Writer("upload-1"); err != nil {
		t.Fatal(err)
	}
	if w.Offset() != 20_000 {
		t.Fatalf("resumes at %d, want 20000", w.Offset())
	}
	if _, err := w.Write(data[20_000:30_000]); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	disk.Restart(nil)
	s = open(t, disk)
	if w, err = s.Writer("upload-1"); err != nil {
		t.Fatal(err)
	}
	if w.Offset() != 30_000 {
		t.Fatalf("resumes at %d after Close, want 30000", w.Offset())
	}
	if _, err := w.Write(data[30_000:]); err != nil {
		t.Fatal(err)
	}
	info, err := w.Commit("", -1)
	if err != nil || info.Digest != atelier.DigestOf(data) || !bytes.Equal(read(t, s, info.Digest), data) {
		t.Fatalf("got %+v, %v", info, err)
	}
	if _, err := s.Writer("../etc"); atelier.CodeOf(err) != atelier.Invalid {
		t.Fatalf("a path was taken as a name: %v", err)
	}
}

func TestWriterSurvivesAPowerCutAtEveryStep(t *testing.T) {
	t.Parallel()
	data := sample(6000, 4)
	d := atelier.DigestOf(data)
	upload := func(disk *durabletest.Disk) error {
		s, err := content.Open(disk, "/content", content.WithCheckpoint(2000, time.Hour))
		if err != nil {
			return err
		}
		w, err := s.Writer("up")
		if err != nil {
			return err
		}
		for w.Offset() < int64(len(data)) {
			at := w.Offset()
			if _, err := w.Write(data[at:min(at+1000, int64(len(data)))]); err != nil {
				return err
			}
		}
		_, err = w.Commit("", -1) // no digest is given: what resumed must be right by itself
		return err
	}
	survives(t, upload, func(disk *durabletest.Disk, done bool) error {
		if err := intact(t, open(t, disk), d, data, done); err != nil {
			return err
		}
		if err := upload(disk); err != nil {
			return err
		}
		n := 0
		s := open(t, disk)
		err := s.Walk(func(content.Info) error { n++; return nil })
		if err == nil && n != 1 {
			err = errors.New("more than the one content is there")
		}
		return errors.Join(err, intact(t, s, d, data, true))
	})
}
