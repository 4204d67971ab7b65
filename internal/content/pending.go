package content

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
)

// openData opens the data of an ingest, and makes it where there is none. The file
// is read-only already if the power went during its commit.
func (s *Store) openData(path string) (durable.File, error) {
	f, err := s.fs.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if !errors.Is(err, fs.ErrPermission) {
		return f, err
	}
	if f, err = s.fs.OpenFile(path, os.O_RDONLY, 0); err != nil {
		return nil, err
	}
	if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil {
		return nil, err
	}
	return s.fs.OpenFile(path, os.O_RDWR, 0)
}

// hold marks an ingest as open, so that it has one user at a time.
func (s *Store) hold(name string) error {
	if _, taken := s.busy.LoadOrStore(name, true); taken {
		return atelier.Errorf(atelier.InUse, "%s is being written already", name).
			WithRemedy("Wait until the other writer is done.")
	}
	return nil
}

func (s *Store) release(name string) { s.busy.Delete(name) }

// The names of files in the ingest directory: {kind}-{key}.data and
// {kind}-{key}.record.
const (
	kindFetch      = "fetch-"      // an Ingest; the key is the digest in hex
	kindDifference = "difference-" // an Ingest of a difference; the key is the digest of its target in hex
	kindUpload     = "upload-"     // a Writer with a name; the key is the name
	kindAnon       = "anon-"       // a Writer without a name
	extData        = ".data"
	extRecord      = ".record"
)

// tidy removes what nobody can resume: uploads without a name, and ingests whose
// blob was committed.
func (s *Store) tidy() error {
	return s.eachIngest(func(name string, _ time.Time) error {
		key, ok := strings.CutPrefix(name, kindFetch)
		if !ok {
			key, ok = strings.CutPrefix(name, kindDifference)
		}
		if ok {
			if has, err := s.Has(atelier.Digest("sha256:" + key)); err == nil && !has {
				return nil
			}
		} else if strings.HasPrefix(name, kindUpload) {
			return nil
		}
		return s.drop(name)
	})
}

// AbortStale drops the ingests that nobody has open and that were not written
// to for age.
func (s *Store) AbortStale(age time.Duration) error {
	return s.eachIngest(func(name string, written time.Time) error { return s.abortStale(name, written, age) })
}

// AbortUnneeded does so with those Ingests only whose content needed denies.
func (s *Store) AbortUnneeded(age time.Duration, needed func(atelier.Digest) bool) error {
	return s.eachIngest(func(name string, written time.Time) error {
		key, ok := strings.CutPrefix(name, kindFetch)
		if !ok {
			key, ok = strings.CutPrefix(name, kindDifference)
		}
		if !ok || needed(atelier.Digest("sha256:"+key)) {
			return nil
		}
		return s.abortStale(name, written, age)
	})
}

func (s *Store) abortStale(name string, written time.Time, age time.Duration) error {
	if s.now().Sub(written) < age || s.hold(name) != nil {
		return nil
	}
	defer s.release(name)
	return s.drop(name)
}

// Arrived returns how many bytes of the content of d, which has size bytes, are
// on disk already and will not be needed again by the next Ingest of it: what one
// has accepted that was not committed. 0 where there was none.
func (s *Store) Arrived(d atelier.Digest, size int64) (int64, error) {
	raw, err := d.Sum()
	if err != nil {
		return 0, err
	}
	path := filepath.Join(s.dir, kindFetch+d.Hex())
	info, err := s.fs.Stat(path + extData)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() != size {
		return 0, nil
	}
	if err != nil {
		return 0, durable.Explain(err, "look at what came of "+string(d))
	}
	claimed, err := durable.ReadFile(s.fs, path+extRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, durable.Explain(err, "look at what came of "+string(d))
	}
	done, _ := decodeRecord(claimed[:min(len(claimed), maxRecord)], raw, size)
	return done.Bytes(), nil
}

// Abort drops what has come in so far of the content of d, and of a difference of
// which it was to be made. It is no error when there is nothing; InUse when an
// Ingest has it open.
func (s *Store) Abort(d atelier.Digest) error {
	if _, err := s.path(d); err != nil {
		return err
	}
	for _, name := range []string{kindFetch + d.Hex(), kindDifference + d.Hex()} {
		if err := s.hold(name); err != nil {
			return err
		}
		err := s.drop(name)
		s.release(name)
		if err != nil {
			return err
		}
	}
	return nil
}

// eachIngest calls fn with the name of each ingest and when it was written to.
func (s *Store) eachIngest(fn func(name string, written time.Time) error) error {
	list, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return durable.Explain(err, "list ingests")
	}
	newest := map[string]time.Time{}
	for _, e := range list {
		name := strings.TrimSuffix(e.Name(), ".tmp")
		name = strings.TrimSuffix(strings.TrimSuffix(name, extData), extRecord)
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return durable.Explain(err, "list ingests")
		}
		if t, seen := newest[name]; !seen || info.ModTime().After(t) {
			newest[name] = info.ModTime()
		}
	}
	for name, written := range newest {
		if err := fn(name, written); err != nil {
			return err
		}
	}
	return nil
}

// drop removes the files of an ingest. The record goes first: without its data
// it would claim what is not there.
func (s *Store) drop(name string) error {
	dropped := false
	for _, ext := range []string{extRecord + ".tmp", extRecord, extData} {
		err := s.fs.Remove(filepath.Join(s.dir, name+ext))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return durable.Explain(err, "drop ingest "+name)
		}
		dropped = dropped || err == nil
	}
	if !dropped {
		return nil
	}
	return durable.Explain(s.fs.SyncDir(s.dir), "drop ingest "+name)
}
