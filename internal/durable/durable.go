package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	atelier "github.com/atelier-edge/atelier"
)

// WriteFile replaces the file at path with data. When it returns nil, the new
// content is on disk under that name; when it fails or the power goes, the old
// content is still there, or the new one, never a mixture. The mode is exactly perm.
//
// The data goes through path + ".tmp" first. A path has one writer at a time;
// what a power cut leaves of the temporary file is overwritten by the next write.
//
// Errors are *atelier.Error: NoSpace when the disk is full, otherwise as Explain says.
func WriteFile(fsys FS, path string, data []byte, perm fs.FileMode) error {
	tmp := path + ".tmp"
	err := writeSynced(fsys, tmp, data, perm)
	if err == nil {
		err = fsys.Rename(tmp, path)
	}
	if err != nil {
		_ = fsys.Remove(tmp) // gives back space; the next write overwrites it anyway
		return Explain(err, "write "+path)
	}
	return Explain(fsys.SyncDir(filepath.Dir(path)), "write "+path)
}

func writeSynced(fsys FS, path string, data []byte, perm fs.FileMode) error {
	f, err := fsys.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(perm) // against the umask, and the mode of a file left behind
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// ReadFile returns the content of the file at path. The error has the code
// NotFound, and matches fs.ErrNotExist, where there is none.
func ReadFile(fsys FS, path string) ([]byte, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, Explain(err, "read "+path)
	}
	data, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, Explain(err, "read "+path)
	}
	return data, nil
}

// MkdirAll makes the directory at path and those above it, and makes the new
// names durable. It is no error when the directory is there already; its name
// is synced all the same, since a program that ended too early may have made it.
func MkdirAll(fsys FS, path string, perm fs.FileMode) error {
	path = filepath.Clean(path)
	parent := filepath.Dir(path)
	if info, err := fsys.Stat(path); err == nil {
		if !info.IsDir() {
			return Explain(&fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}, "make directory "+path)
		}
		err := fsys.SyncDir(parent)
		if errors.Is(err, fs.ErrPermission) {
			err = nil // no program of ours made a name there
		}
		return Explain(err, "sync directory "+parent)
	}
	if parent != path {
		if err := MkdirAll(fsys, parent, perm); err != nil {
			return err
		}
	}
	if err := fsys.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return Explain(err, "make directory "+path)
	}
	return Explain(fsys.SyncDir(parent), "make directory "+path)
}

// Remove removes the file or empty directory at path and makes that durable. It
// is no error when there is none.
func Remove(fsys FS, path string) error {
	if err := fsys.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return Explain(err, "remove "+path)
	}
	return Explain(fsys.SyncDir(filepath.Dir(path)), "remove "+path)
}

// Explain turns an error of a file system into an *atelier.Error that says what
// could not be done: NoSpace for a full disk or a used-up quota, NotFound for a
// missing file, Internal for the rest. It returns nil for nil, and an error
// that is an *atelier.Error already as it is.
func Explain(err error, doing string) error {
	var typed *atelier.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &typed):
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return atelier.Errorf(atelier.NoSpace, "cannot %s: %w", doing, err).
			WithRemedy("Free disk space there.")
	case errors.Is(err, fs.ErrNotExist):
		return atelier.Errorf(atelier.NotFound, "cannot %s: %w", doing, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return atelier.Errorf(atelier.Internal, "cannot %s: %w", doing, err).
			WithRemedy("Let the program's user write there.")
	}
	return atelier.Errorf(atelier.Internal, "cannot %s: %w", doing, err)
}
