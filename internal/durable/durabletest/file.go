package durabletest

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// file is an open file of a Disk.
type file struct {
	disk     *Disk
	boot     int
	node     *node
	name     string
	at       int64 // the disk's lock guards it
	writable bool
	append   bool
	closed   bool
}

// use runs fn under the disk's lock if the file is still alive.
func (f *file) use(op string, fn func() error) error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	err := error(nil)
	switch {
	case f.closed:
		err = fs.ErrClosed
	case f.disk.cut, f.boot != f.disk.boot:
		err = ErrPowerCut
	default:
		err = fn()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return &fs.PathError{Op: op, Path: f.name, Err: err}
	}
	return err
}

func (f *file) readAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.node.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.node.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Read implements io.Reader.
func (f *file) Read(p []byte) (n int, err error) {
	err = f.use("read", func() (err error) {
		n, err = f.readAt(p, f.at)
		f.at += int64(n)
		if n > 0 {
			err = nil
		}
		return err
	})
	return n, err
}

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.use("read", func() (err error) {
		n, err = f.readAt(p, off)
		return err
	})
	return n, err
}

func (f *file) writeAt(p []byte, off int64) (int, error) {
	if !f.writable {
		return 0, syscall.EBADF
	}
	half, err := f.disk.begin()
	if err != nil && half {
		p = p[:len(p)/2]
	} else if err != nil {
		return 0, err
	}
	grow := off + int64(len(p)) - int64(len(f.node.data))
	if grow > 0 {
		if room := f.disk.space - f.disk.used(); grow > room && err == nil {
			err = syscall.ENOSPC
			p = p[:max(0, int64(len(p))-(grow-max(0, room)))]
			grow = off + int64(len(p)) - int64(len(f.node.data))
		}
	}
	if grow > 0 && len(p) > 0 {
		f.node.data = append(f.node.data, make([]byte, grow)...)
	}
	if len(p) > 0 {
		copy(f.node.data[off:], p)
		f.node.changed = time.Now()
	}
	return len(p), err
}

// Write implements io.Writer.
func (f *file) Write(p []byte) (n int, err error) {
	err = f.use("write", func() (err error) {
		if f.append {
			f.at = int64(len(f.node.data))
		}
		n, err = f.writeAt(p, f.at)
		f.at += int64(n)
		return err
	})
	return n, err
}

// WriteAt implements io.WriterAt.
func (f *file) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.use("write", func() (err error) {
		n, err = f.writeAt(p, off)
		return err
	})
	return n, err
}

// Truncate implements durable.File.
func (f *file) Truncate(size int64) error {
	return f.use("truncate", func() error {
		if !f.writable {
			return syscall.EINVAL
		}
		if _, err := f.disk.begin(); err != nil {
			return err
		}
		if n := int64(len(f.node.data)); size <= n {
			f.node.data = f.node.data[:size:size]
		} else {
			f.node.data = append(f.node.data, make([]byte, size-n)...)
		}
		return nil
	})
}

// Sync implements durable.File.
func (f *file) Sync() error {
	return f.use("sync", func() error {
		if _, err := f.disk.begin(); err != nil {
			return err
		}
		f.node.synced = slices.Clone(f.node.data)
		return nil
	})
}

// Chmod implements durable.File. The disk takes modes as durable at once.
func (f *file) Chmod(mode fs.FileMode) error {
	return f.use("chmod", func() error {
		if _, err := f.disk.begin(); err != nil {
			return err
		}
		f.node.mode = mode
		return nil
	})
}

// Stat implements durable.File.
func (f *file) Stat() (info fs.FileInfo, err error) {
	err = f.use("stat", func() error {
		info = describe(filepath.Base(f.name), f.node)
		return nil
	})
	return info, err
}

// Close implements io.Closer.
func (f *file) Close() error {
	return f.use("close", func() error {
		f.closed = true
		return nil
	})
}

// about describes a node at one moment.
type about struct {
	name    string
	size    int64
	mode    fs.FileMode
	changed time.Time
}

func describe(name string, n *node) about {
	a := about{name: name, size: int64(len(n.data)), mode: n.mode, changed: n.changed}
	if n.dir {
		a.mode |= fs.ModeDir
	}
	return a
}

func (a about) Name() string       { return a.name }
func (a about) Size() int64        { return a.size }
func (a about) Mode() fs.FileMode  { return a.mode }
func (a about) ModTime() time.Time { return a.changed }
func (a about) IsDir() bool        { return a.mode.IsDir() }
func (a about) Sys() any           { return nil }
