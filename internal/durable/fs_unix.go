//go:build linux || darwin

package durable

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// SyncDir implements FS. A file system that cannot sync directories says so
// with EINVAL or ENOTSUP; nothing better can be done there, and it is no error.
func (OS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// Free implements FS. It counts what an unprivileged user may use.
func (OS) Free(name string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(name, &s); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return int64(s.Bavail) * int64(s.Bsize), nil //nolint:unconvert // the types differ between platforms
}
