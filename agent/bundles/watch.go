package bundles

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
)

// Times of watching.
const (
	// settle is how long nothing may change before bundles are looked at: a copy
	// that goes on is left alone.
	settle = 2 * time.Second
	// lookAgain is how often they are looked at in any case: not every file system
	// tells of changes (NFS, a medium that is mounted over the directory), and what
	// waits is tried again.
	lookAgain = time.Minute
)

// The names in the directory that are ours.
const (
	doneDir = "done"
	whyExt  = ".why"
)

// unfinished are the endings that programs give to what they are still copying.
var unfinished = []string{".part", ".partial", ".filepart", ".crdownload", ".tmp"}

// Watch imports each bundle that appears in the directory, until ctx ends. A
// bundle that was imported is moved to done, or removed; beside one that was
// refused, or is not there as a whole, a file NAME.why says why. What changes is
// looked at again.
func (i *Importer) Watch(ctx context.Context) {
	if err := durable.MkdirAll(durable.OS{}, i.opts.Directory, 0o700); err != nil {
		i.opts.Log.Warn("the directory for bundles cannot be made", "error", err)
	}
	// Without a watcher the clock serves, more slowly.
	events, failures := make(chan fsnotify.Event), make(chan error)
	w, err := fsnotify.NewWatcher()
	if err == nil {
		defer func() { _ = w.Close() }() // nothing is lost when closing a watcher fails
		events, failures = w.Events, w.Errors
	} else {
		i.opts.Log.Warn("changes of the directory for bundles are noticed late", "error", err)
	}
	quiet, again := time.NewTimer(0), time.NewTicker(lookAgain)
	defer quiet.Stop()
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-events:
			quiet.Reset(settle)
		case err := <-failures:
			i.opts.Log.Warn("watch the directory for bundles", "error", err)
			quiet.Reset(settle)
		case <-quiet.C:
			i.look(ctx, w)
		case <-again.C:
			i.look(ctx, w)
		}
	}
}

// seen is what was judged, and what it looked like then.
type seen struct {
	print string
	state string
}

// look imports what is new in the directory.
func (i *Importer) look(ctx context.Context, w *fsnotify.Watcher) {
	follow(w, i.opts.Directory)
	list, err := os.ReadDir(i.opts.Directory)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			i.opts.Log.Warn("the directory for bundles cannot be read", "error", err)
		}
		return
	}
	present := map[string]bool{}
	for _, e := range list {
		name := e.Name()
		if ctx.Err() != nil || !isBundle(i.opts.Directory, e) {
			continue
		}
		present[name] = true
		path := filepath.Join(i.opts.Directory, name)
		if e.IsDir() {
			for _, dir := range parts(path) {
				follow(w, dir)
			}
		}
		before := fingerprint(path)
		if s := i.seen[name]; s.print == before && s.state != StateWaiting {
			continue
		}
		done, err := i.Import(ctx, path)
		if ctx.Err() != nil {
			return
		}
		o := outcome(name, done, err)
		if o.State == StateRefused && fingerprint(path) != before {
			continue // it was being changed: the next look tells
		}
		i.seen[name] = seen{before, o.State}
		if err := i.mark(w, path, o); err != nil { // the medium is read-only, perhaps; the status tells all the same
			i.opts.Log.Warn("a bundle cannot be put away, or marked", "bundle", name, "error", err)
		}
	}
	for name := range i.seen {
		if !present[name] {
			delete(i.seen, name)
		}
	}
}

// follow asks to be told of changes in a directory, which may be gone already.
func follow(w *fsnotify.Watcher, dir string) {
	if w != nil {
		_ = w.Add(dir) // the clock serves where this fails
	}
}

// isBundle reports whether an entry of the directory may be a bundle.
func isBundle(dir string, e fs.DirEntry) bool {
	name := e.Name()
	switch {
	case strings.HasPrefix(name, "."), strings.HasSuffix(name, whyExt), name == doneDir:
		return false
	case slices.Contains(unfinished, filepath.Ext(name)):
		return false
	case !e.IsDir():
		return true
	}
	// A directory with nothing of a layout in it is something else, lost+found perhaps.
	for _, part := range []string{"oci-layout", "index.json", "blobs"} {
		if _, err := os.Lstat(filepath.Join(dir, name, part)); err == nil {
			return true
		}
	}
	return false
}

// fingerprint changes with what is at path.
func fingerprint(path string) string {
	info, err := os.Lstat(path)
	if err != nil {
		return ""
	}
	h := fmt.Append(nil, info.Size(), info.ModTime().UnixNano(), info.Mode())
	if !info.IsDir() {
		return string(h)
	}
	for _, dir := range parts(path) {
		list, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range list {
			if info, err := e.Info(); err == nil {
				h = fmt.Append(h, e.Name(), info.Size(), info.ModTime().UnixNano())
			}
		}
		h = []byte(atelier.DigestOf(h))
	}
	return string(h)
}

// mark puts a bundle away that was imported, or says beside it why it was not.
func (i *Importer) mark(w *fsnotify.Watcher, path string, o Outcome) error {
	why := path + whyExt
	if o.State != StateImported {
		return writeWhy(why, o)
	}
	if err := durable.Remove(durable.OS{}, why); err != nil {
		return err
	}
	if err := i.putAway(path); err != nil {
		return err
	}
	if w != nil {
		for _, dir := range parts(path) {
			_ = w.Remove(dir) // those that were watched
		}
	}
	return nil
}

// parts are the directories of a bundle that is one.
func parts(path string) []string {
	return []string{path, filepath.Join(path, "blobs"), filepath.Join(path, "blobs", "sha256")}
}

func writeWhy(path string, o Outcome) error {
	text := fmt.Sprintf("%s: %s\n%s\n%s\n", o.State, o.Why.Reason(), o.Why.Message(), o.Why.Remedy())
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return nil
	}
	return durable.WriteFile(durable.OS{}, path, []byte(text), 0o644)
}

// putAway moves a bundle that was imported to done, or removes it.
func (i *Importer) putAway(path string) error {
	if !i.opts.Keep {
		return os.RemoveAll(path)
	}
	done := filepath.Join(i.opts.Directory, doneDir)
	if err := durable.MkdirAll(durable.OS{}, done, 0o700); err != nil {
		return err
	}
	to := filepath.Join(done, filepath.Base(path))
	if _, err := os.Lstat(to); err == nil {
		to += "." + time.Now().UTC().Format("20060102T150405.000")
	}
	return os.Rename(path, to)
}
