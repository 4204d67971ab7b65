package environment

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	slashpath "path"
	"path/filepath"
	"strings"
	"syscall"

	atelier "github.com/atelier-edge/atelier"
)

// partial ends the name of a directory that is being unpacked.
const partial = ".partial"

// Unpack makes dir, which is not there yet, of the tar file that r reads. It is made
// beside its place, synced and put there in one step: after a crash at any moment dir is
// there whole or not at all. Corrupt where the file is none that Pack writes or leads out
// of dir; nothing is ever written outside of it. The files cannot be written by whoever
// only runs what is in them: modules share the directory.
func Unpack(ctx context.Context, r io.Reader, dir string) error {
	// One call for the whole tree: a sync of each of tens of thousands of files would
	// take minutes on the disks of devices.
	return unpack(ctx, r, dir, syncFileSystem)
}

func unpack(ctx context.Context, r io.Reader, dir string, sync func(dir string) error) (err error) {
	made := dir + partial
	if err := os.RemoveAll(made); err != nil {
		return explain(err)
	}
	if err := os.MkdirAll(made, 0o755); err != nil {
		return explain(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(made))
		}
	}()
	root, err := os.OpenRoot(made)
	if err != nil {
		return explain(err)
	}
	u := unpacking{root: root, directories: map[string]bool{".": true}}
	err = errors.Join(u.all(ctx, tar.NewReader(r)), root.Close())
	if err != nil {
		return err
	}
	if err := sync(made); err != nil {
		return explain(err)
	}
	if err := os.Rename(made, dir); err != nil {
		return explain(err)
	}
	return explain(sync(filepath.Dir(dir)))
}

// unpacking is one environment as it is made. os.Root keeps it within its directory
// whatever the names and the links say; the checks tell what is wrong with them.
type unpacking struct {
	root        *os.Root
	directories map[string]bool // those that were made; links are none
	entries     int
	size        int64
}

func (u *unpacking) all(ctx context.Context, in *tar.Reader) error {
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return damaged(err)
		}
		if err := u.one(in, h); err != nil {
			return err
		}
	}
}

// damaged says of an error of reading that the file is no environment, unless it is
// not the file's fault.
func damaged(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return atelier.Errorf(atelier.Corrupt, "the environment's tar file cannot be read: %w", err)
}

func (u *unpacking) one(in *tar.Reader, h *tar.Header) error {
	path := h.Name
	if h.Typeflag == tar.TypeDir {
		path = strings.TrimSuffix(path, "/")
	}
	if err := checkPath(path); err != nil {
		return err
	}
	if u.entries++; u.entries > maxEntries {
		return atelier.Errorf(atelier.TooLarge, "the environment has more than %d files", maxEntries)
	}
	if !u.directories[slashpath.Dir(path)] {
		return atelier.Errorf(atelier.Corrupt, "the environment has a file %.120q before its directory, or in what is none", path)
	}
	name := filepath.FromSlash(path)
	switch h.Typeflag {
	case tar.TypeDir:
		u.directories[path] = true
		return explain(u.root.Mkdir(name, 0o755))
	case tar.TypeSymlink:
		if err := checkLink(path, h.Linkname); err != nil {
			return err
		}
		return explain(u.root.Symlink(filepath.FromSlash(h.Linkname), name))
	case tar.TypeReg:
		if u.size += h.Size; h.Size < 0 || u.size > maxSize {
			return atelier.Errorf(atelier.TooLarge, "the environment's files have more than %s", atelier.FormatBytes(maxSize))
		}
		return u.file(in, h, name)
	}
	return atelier.Errorf(atelier.Corrupt, "the environment has an entry %.120q of type %q, which is neither a file, a directory nor a link", path, h.Typeflag)
}

func (u *unpacking) file(in *tar.Reader, h *tar.Header, name string) error {
	mode := fs.FileMode(0o444)
	if h.Mode&0o111 != 0 {
		mode = 0o555
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return explain(err)
	}
	from := &source{r: in}
	_, err = io.Copy(f, from)
	err = errors.Join(err, f.Close())
	if from.err != nil {
		return damaged(from.err)
	}
	return explain(err)
}

// source remembers what reading failed with, to tell it from a failure to write.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// explain says why something could not be written.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return atelier.Errorf(atelier.NoSpace, "the disk is too full to unpack the environment: %w", err)
	case errors.Is(err, fs.ErrExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ELOOP):
		return atelier.Errorf(atelier.Corrupt, "the environment's files are at odds with each other: %w", err)
	}
	return fmt.Errorf("unpack the environment: %w", err)
}

// Reader returns a reader of size bytes for Unpack, which stops where ctx ends.
func Reader(ctx context.Context, from io.ReaderAt, size int64) io.Reader {
	return &cancelled{ctx, io.NewSectionReader(from, 0, size)}
}

type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
