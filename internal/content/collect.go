package content

import (
	"context"
	"path/filepath"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
)

// Collected says what a pass of Collect did.
type Collected struct {
	Blobs     int   // deleted
	Bytes     int64 // that they held
	Condemned int   // waiting to be deleted by a later pass
}

// Collect makes one pass of garbage collection. A blob that referenced denies is
// condemned; a later pass deletes it if it has been condemned for wait and is
// still not referenced. A commit of the same content, or Keep, takes the
// condemnation back, so whoever refers to a digest within wait after its commit
// or Keep refers to a blob that is there. An error of referenced ends the pass.
//
// Condemnations are not kept on disk: they begin anew with the process, which
// only makes blobs live longer.
func (s *Store) Collect(ctx context.Context, wait time.Duration, referenced func(atelier.Digest) (bool, error)) (Collected, error) {
	var out Collected
	err := s.Walk(func(info Info) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		since, was := s.condemnation(info.Digest)
		needed, err := referenced(info.Digest)
		switch {
		case err != nil:
			return err
		case needed:
			s.pardon(info.Digest)
			return nil
		case !was:
			s.condemn(info.Digest)
			out.Condemned++
			return nil
		case s.now().Sub(since) < wait:
			out.Condemned++
			return nil
		}
		deleted, err := s.execute(info.Digest, since)
		if deleted {
			out.Blobs++
			out.Bytes += info.Size
		}
		return err
	})
	return out, err
}

// Keep takes a condemnation of d back and makes sure that the blob is durable:
// call it before referring to content that was there already. NotFound where it
// is not there.
func (s *Store) Keep(d atelier.Digest) error {
	path, err := s.path(d)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.info(d); err != nil {
		return err
	}
	delete(s.condemned, d)
	return durable.Explain(s.fs.SyncDir(filepath.Dir(path)), "keep content "+string(d))
}

func (s *Store) condemnation(d atelier.Digest) (since time.Time, condemned bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	since, condemned = s.condemned[d]
	return since, condemned
}

func (s *Store) condemn(d atelier.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.condemned[d] = s.now()
}

func (s *Store) pardon(d atelier.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.condemned, d)
}

// execute deletes d if it is still condemned as it was when its references
// were looked for.
func (s *Store) execute(d atelier.Digest, since time.Time) (bool, error) {
	path, err := s.path(d)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, still := s.condemned[d]; !still || !now.Equal(since) {
		return false, nil
	}
	delete(s.condemned, d)
	if err := durable.Remove(s.fs, path); err != nil {
		return false, err
	}
	return true, nil
}
