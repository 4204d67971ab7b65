package config

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long the directory must be quiet before the file is read:
// editors and configuration tools write in several steps.
const settle = 200 * time.Millisecond

// Watch follows the file at path until ctx ends. Once at the beginning, since
// the file may have changed after it was loaded, and after each change of the
// file's content it calls changed, from one goroutine, with the new
// configuration, or with the error that says why the file cannot be used; the
// caller then keeps what it has. It returns nil when ctx ends.
//
// It watches the directory rather than the file, since editors and Kubernetes
// put a new file in the old one's place. The directory must exist.
func Watch(ctx context.Context, path string, changed func(Config, error)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the configuration: %w", err)
	}
	defer func() { _ = w.Close() }() // nothing is lost when closing a watcher fails
	if err := w.Add(filepath.Dir(path)); err != nil {
		return fmt.Errorf("watch the configuration's directory: %w", err)
	}
	var seen []byte // nil while there is no file
	quiet := time.NewTimer(settle)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-w.Events:
			if !ok {
				return nil
			}
			quiet.Reset(settle)
		case err, ok := <-w.Errors:
			if !ok {
				return nil
			}
			// Events may have been lost: look at the file.
			changed(Config{}, fmt.Errorf("watch the configuration: %w", err))
			quiet.Reset(settle)
		case <-quiet.C:
			text, err := read(path)
			if err == nil && seen != nil && bytes.Equal(text, seen) {
				continue
			}
			if err != nil && seen == nil {
				continue // there is still none
			}
			seen = text
			changed(Load(path))
		}
	}
}
