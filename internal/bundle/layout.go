package bundle

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	atelier "github.com/atelier-edge/atelier"
)

// layout gives access to the files of an OCI image layout by their names.
type layout interface {
	// size returns how many bytes a file has; fs.ErrNotExist where there is none.
	size(name string) (int64, error)
	// open opens a file. What is read after it was closed fails.
	open(name string) (blob, error)
	io.Closer
}

// blob is one open file of a layout.
type blob interface {
	io.ReaderAt
	io.Closer
}

// openLayout opens the layout at path, a directory or a tar file.
func openLayout(path string) (layout, error) {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return nil, unreadable(err)
	case info.IsDir():
		root, err := os.OpenRoot(path)
		if err != nil {
			return nil, unreadable(err)
		}
		return &directory{root}, nil
	case info.Mode().IsRegular():
		f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if err != nil {
			return nil, unreadable(err)
		}
		a, err := openArchive(f)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return a, nil
	}
	return nil, invalid("the bundle is neither a directory nor a file, but %s", info.Mode().Type())
}

// unreadable is the error of a medium that does not work, or is gone; it may pass.
func unreadable(err error) error {
	return Refuse(atelier.ReasonBundleUnreadable, atelier.Unavailable, "the bundle cannot be read: %w", err)
}

// directory is a layout as a directory. Links are not followed.
type directory struct{ root *os.Root }

func (d *directory) size(name string) (int64, error) {
	info, err := d.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fs.ErrNotExist
	}
	if err != nil {
		return 0, unreadable(err)
	}
	if !info.Mode().IsRegular() {
		return 0, invalid("%s in the bundle is not a plain file, but %s", name, info.Mode().Type())
	}
	return info.Size(), nil
}

func (d *directory) open(name string) (blob, error) {
	if _, err := d.size(name); err != nil {
		return nil, err
	}
	// Somebody may put a pipe into the file's place, which must block nobody.
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, unreadable(err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(invalid("%s in the bundle is not a plain file", name), f.Close())
	}
	return f, nil
}

func (d *directory) Close() error { return d.root.Close() }

// archive is a layout as a tar file: an index of where its files lie in it.
type archive struct {
	file  *os.File
	files map[string]*io.SectionReader
}

// openArchive lists the files in a tar file. One that ends too early is listed as
// far as it goes: what is missing of it is found when it is looked for.
func openArchive(f *os.File) (*archive, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, unreadable(err)
	}
	a := &archive{file: f, files: map[string]*io.SectionReader{}}
	return a, a.list(f, info.Size())
}

func (a *archive) list(f io.ReadSeeker, end int64) error {
	for r, n := tar.NewReader(f), 0; ; n++ {
		h, err := r.Next()
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case errors.Is(err, tar.ErrHeader):
			return invalid("the file is not a tar file, or is damaged: %w", err)
		case errors.Is(err, tar.ErrInsecurePath): // GODEBUG may ask for it; no name becomes a path here
		case err != nil:
			return unreadable(err)
		case n == maxEntries:
			return invalid("the tar file has more than %d entries", maxEntries)
		}
		name := path.Clean(h.Name)
		switch {
		case h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeXGlobalHeader:
			continue
		case h.Typeflag != tar.TypeReg || sparse(h):
			return invalid("%.80q in the tar file is not a plain file", h.Name)
		case !known(name):
			continue
		case a.files[name] != nil:
			return invalid("%s is in the tar file twice", name)
		}
		// The reader reads no further than the header, so that the content begins here.
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return unreadable(err)
		}
		a.files[name] = io.NewSectionReader(a.file, at, min(h.Size, max(end-at, 0)))
	}
}

// sparse reports whether an entry claims holes: its bytes are then not what lies there.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// known reports whether name is one that a reader may look for.
func known(name string) bool {
	if name == layoutFile || name == indexFile {
		return true
	}
	hex, ok := strings.CutPrefix(name, blobsDir)
	if !ok {
		return false
	}
	_, err := atelier.ParseDigest("sha256:" + hex)
	return err == nil
}

func (a *archive) size(name string) (int64, error) {
	if s := a.files[name]; s != nil {
		return s.Size(), nil
	}
	return 0, fs.ErrNotExist
}

// section is a file within the archive, which stays open.
type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

func (a *archive) open(name string) (blob, error) {
	if s := a.files[name]; s != nil {
		return section{s}, nil
	}
	return nil, fs.ErrNotExist
}

func (a *archive) Close() error { return a.file.Close() }
