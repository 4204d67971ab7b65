// Package durable writes files so that they survive a power cut, and defines the
// file-system interface that faults are injected into.
//
// What WriteFile, MkdirAll and Remove report as done is on disk: the file's bytes
// were synced before its name, and the name with its directory. A reader sees the
// old content or the new, never a part. The package knows no format and no
// layout; whoever keeps state decides what goes where.
package durable

import (
	"io"
	"io/fs"
	"os"
)

// FS is a file system as those who keep state see it. OS is the real one;
// durabletest.Disk forgets at a power cut what was not synced. Errors are those
// of package os, so that errors.Is(err, fs.ErrNotExist) and friends work.
//
// A change is certain to survive a power cut only when it was synced: a file's
// bytes by File.Sync, a name that was made, moved or removed by SyncDir of the
// directory that holds it (of both directories for a move between two).
type FS interface {
	// OpenFile opens a file as os.OpenFile does.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Mkdir makes one directory.
	Mkdir(name string, perm fs.FileMode) error
	// Rename moves a file, replacing what has the new name.
	Rename(oldname, newname string) error
	// Link gives a file a second name.
	Link(oldname, newname string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// ReadDir lists a directory, sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Stat describes a file or directory.
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the names in a directory durable.
	SyncDir(name string) error
	// Free returns how many bytes can still be written below name.
	Free(name string) (int64, error)
}

// File is an open file. *os.File is one.
type File interface {
	io.Reader
	io.Writer
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
	Truncate(size int64) error
	Chmod(mode fs.FileMode) error
	Stat() (fs.FileInfo, error)
}

// OS is the operating system's file system.
type OS struct{}

// OpenFile implements FS.
func (OS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err // not f: a nil *os.File is no nil File
	}
	return f, nil
}

// Mkdir implements FS.
func (OS) Mkdir(name string, perm fs.FileMode) error { return os.Mkdir(name, perm) }

// Rename implements FS.
func (OS) Rename(oldname, newname string) error { return os.Rename(oldname, newname) }

// Link implements FS.
func (OS) Link(oldname, newname string) error { return os.Link(oldname, newname) }

// Remove implements FS.
func (OS) Remove(name string) error { return os.Remove(name) }

// ReadDir implements FS.
func (OS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

// Stat implements FS.
func (OS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }
