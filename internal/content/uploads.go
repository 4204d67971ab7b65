package content

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/atelier-edge/atelier/internal/durable"
)

// Upload is a stream that a Writer with a name has begun, and that was neither
// committed nor dropped.
type Upload struct {
	Name    string
	Written time.Time // when bytes of it came last
}

// Uploads lists the uploads whose names begin with prefix, in no order. Those that
// come or go meanwhile may be met or not.
func (s *Store) Uploads(prefix string) ([]Upload, error) {
	var all []Upload
	err := s.eachIngest(func(name string, written time.Time) error {
		if name, ok := strings.CutPrefix(name, kindUpload); ok && strings.HasPrefix(name, prefix) {
			all = append(all, Upload{Name: name, Written: written})
		}
		return nil
	})
	return all, err
}

// HasUpload reports whether there is an upload of that name to go on with. A Writer
// of the name would begin one where there is none.
func (s *Store) HasUpload(name string) (bool, error) {
	if !uploadName(name) {
		return false, nil
	}
	_, err := s.fs.Stat(filepath.Join(s.dir, kindUpload+name+extData))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, durable.Explain(err, "look for an upload")
}

// uploadName reports whether name is one that an upload can have.
func uploadName(name string) bool {
	return name != "" && len(name) <= 64 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
